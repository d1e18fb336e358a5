import json

import numpy as np
import pytest
import tokenizers

from raytrain.data.tokenizer import ByteTokenizer, JsonTokenizer, read_tokenizer, train_bpe
from raytrain.errors import UserError

TEXTS = ["def f(x):\n    return x + 1\n", "né 漢字 \U0001f600", "", "  tabs\tand\r\nlines  ", "the the the theory"] * 20


def test_bytes_are_utf_8_and_back():
    """Catches any other encoding, and a decoder that loses text."""
    tokenizer = ByteTokenizer()
    encoded = tokenizer.encode_batch(TEXTS)
    assert [bytes(ids.tolist()) for ids in encoded] == [text.encode("utf-8") for text in TEXTS]
    assert [tokenizer.decode(ids) for ids in encoded] == TEXTS
    assert tokenizer.decode([0xE9, 65]) == "\ufffdA"


def test_bpe_decodes_to_what_it_encoded_and_shortens_it():
    """Catches a lossy pre-tokenizer (prefix space, missing bytes of the alphabet) and merges that were not learned."""
    tokenizer = train_bpe(TEXTS, 300)
    assert tokenizer.vocab_size == 300
    unseen = "ünseen bytes: \x00\x7f 한국어"
    for text, ids in zip([*TEXTS, unseen], tokenizer.encode_batch([*TEXTS, unseen]), strict=True):
        assert tokenizer.decode(ids) == text
        assert ids.max(initial=0) < 300
    (ids,) = tokenizer.encode_batch(["the the the the"])
    assert len(ids) == 4


def test_bpe_training_is_deterministic_and_the_name_tells_tokenizers_apart():
    """Catches a fingerprint that changes from run to run, and equal names for different vocabularies."""
    assert train_bpe(TEXTS, 300).to_json() == train_bpe(TEXTS, 300).to_json()
    assert train_bpe(TEXTS, 300).name == train_bpe(TEXTS, 300).name
    assert train_bpe(TEXTS, 300).name != train_bpe(TEXTS[:1] * 50, 300).name


def test_bpe_needs_its_alphabet():
    """Catches a vocabulary too small for all bytes, which would drop characters."""
    with pytest.raises(UserError, match=r"vocab_size \(256\) of a BPE must be 257 or more"):
        train_bpe(TEXTS, 256)


def make_json(tmp_path, tokens: dict[str, int]):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_given_tokenizer_is_used_without_truncation_padding_and_added_tokens(tmp_path):
    """Catches a tokenizer.json whose saved settings cut every document to a few tokens or add a start token."""
    path = make_json(tmp_path, {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 9})
    tokenizer = read_tokenizer(path)
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a b a b", "b"])] == [[3, 9, 3, 9], [9]]
    assert tokenizer.end_of_document == 2
    assert tokenizer.vocab_size == 10  # ids have a gap: the largest decides, not their number
    assert np.concatenate(tokenizer.encode_batch(["a b"])).max() < tokenizer.vocab_size


def test_the_usual_end_of_document_wins(tmp_path):
    """Catches a sentence end being taken where the document end exists too."""
    path = make_json(tmp_path, {"<unk>": 0, "<s>": 1, "</s>": 2, "<|endoftext|>": 3})
    assert read_tokenizer(path).end_of_document == 3


def test_unusable_tokenizers_are_one_line_errors(tmp_path):
    """Catches tracebacks from the Rust library, and documents that run into each other for want of an end token."""
    with pytest.raises(UserError, match=r"none\.json"):
        read_tokenizer(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        JsonTokenizer(json.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"tokenizer\.json: The tokenizer has no end-of-document token"):
        read_tokenizer(make_json(tmp_path, {"<unk>": 0, "<s>": 1}))
