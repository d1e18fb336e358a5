"""Text to token ids and back: bytes, or a Hugging Face tokenizer, trained here or given as a `tokenizer.json`."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers

from raytrain.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"
# What published tokenizers call the end of a document, the usual names first.
_END_NAMES = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "[SEP]")


_SURROGATES = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What every tokenizer has. `name` is a function of what it does, so equal names encode alike."""

    name: str
    vocab_size: int
    end_of_document: int
    reserved: str  # characters that no document may hold, since they would end it

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, unsigned, (tokens of that text,); no end-of-document id."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; what is not valid UTF-8 becomes U+FFFD."""

    def to_json(self) -> str | None:
        """The content of its `tokenizer.json`, if it has one."""

    def to_hugging_face(self) -> tuple[dict[str, Any], str]:
        """A `tokenizer.json`, parsed, that encodes as `encode_batch` by default; and the text of its end token.

        That every text of a special token is text is not in the file: `transformers` calls it split_special_tokens.
        """


class ByteTokenizer:
    """A token is a byte of UTF-8, V = 256. Byte 0, which hardly any text holds, ends a document."""

    name = "bytes"
    vocab_size = 256
    end_of_document = 0
    reserved = "\0"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(np.asarray(ids, np.uint8)).decode(errors="replace")

    def to_json(self) -> None:
        return None

    def to_hugging_face(self) -> tuple[dict[str, Any], str]:
        ids = {name: byte for byte, name in enumerate(_byte_names())}
        ids[END_OF_DOCUMENT] = ids.pop(_byte_names()[self.end_of_document])
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
        tokenizer.normalizer = tokenizers.normalizers.Replace(self.reserved, _REPLACEMENT)  # as in documents
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_DOCUMENT])
        return json.loads(tokenizer.to_str()), END_OF_DOCUMENT


class JsonTokenizer:
    """A Hugging Face tokenizer, from the content of a `tokenizer.json`.

    Used as it is, but for truncation, padding and the special tokens that its post-processor would add: switched off.
    The text of a special token (`<|endoftext|>`) inside a document is text as any other: no document ends there.
    Raises UserError for content that is no tokenizer and for one without an end-of-document token.
    """

    reserved = ""

    def __init__(self, content: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the Rust library raises Exception itself
            raise UserError(f"This is no tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._content = content
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values())  # ids may have gaps, so their number is not enough
        self.name = f"{type(self._tokenizer.model).__name__.lower()}-{self.vocab_size}-{sha256_of(content)[:8]}"
        ends = [name for name in _END_NAMES if name in vocabulary]
        if not ends:
            raise UserError(f"The tokenizer has no end-of-document token; it needs one of {', '.join(_END_NAMES)}")
        self._end, self.end_of_document = ends[0], vocabulary[ends[0]]
        self._tokenizer.add_special_tokens([ends[0]])  # some files have it as a plain token, which any text can spell
        self._tokenizer.encode_special_tokens = True  # as text

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        return self._content

    def to_hugging_face(self) -> tuple[dict[str, Any], str]:
        content = json.loads(self._tokenizer.to_str())  # the end token is special there
        content["post_processor"] = None
        return content, self._end


def train_bpe(texts: Iterable[str], vocab_size: int) -> JsonTokenizer:
    """A byte-level BPE of at most `vocab_size` tokens learned from `texts`, with GPT-2's splitting into words.

    Its alphabet is all 256 bytes, so that any text has an encoding, and `<|endoftext|>` is token 0.
    Raises UserError for a `vocab_size` below these 257. Source: Radford et al., 2019 (GPT-2), section 2.2.
    """
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 1:
        raise UserError(f"vocab_size ({vocab_size}) of a BPE must be {len(alphabet) + 1} or more (bytes and one more)")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return JsonTokenizer(tokenizer.to_str())


def read_tokenizer(path: Path) -> JsonTokenizer:
    """The tokenizer in the file `path`. Raises UserError, naming the file, if it cannot be used."""
    try:
        return JsonTokenizer(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the tokenizer {path}: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def encodable(text: str, reserved: str) -> tuple[str, int]:
    """`text` with U+FFFD for each lone surrogate and each of the `reserved` characters, and how many there were."""
    replaced = 0
    try:
        text.encode()  # far faster than to look for surrogates
    except UnicodeEncodeError:
        text, replaced = _SURROGATES.subn(_REPLACEMENT, text)
    for character in reserved:
        replaced += text.count(character)
        text = text.replace(character, _REPLACEMENT)
    return text, replaced


def _byte_names() -> list[str]:
    """The character that stands for each byte in a `tokenizer.json` (Radford et al., 2019: GPT-2's byte-level BPE).

    It is the one of that number where that can be seen; the others follow from U+0100 in their order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = itertools.count(0x100)
    return [chr(byte if byte in visible else next(hidden)) for byte in range(0x100)]


def sha256_of(content: str) -> str:
    """The SHA-256 of the text as UTF-8, as 64 hex digits."""
    return hashlib.sha256(content.encode()).hexdigest()
