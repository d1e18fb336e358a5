"""Further validation sets, beside the one of the data that a run trains on."""

from raytrain.data.dataset import Dataset, open_dataset
from raytrain.data.loader import check_vocabulary, validation_windows
from raytrain.errors import UserError

EvalData = tuple[tuple[str, str], ...]  # (name, data) of each set, as `open_dataset` takes data


def open_eval_data(
    eval_data: EvalData, data: str, block_size: int, eval_tokens: int, vocab_size: int
) -> dict[str, Dataset]:
    """The sets by name, of which the validation splits count. All that an evaluation would read is looked at.

    Raises UserError, one line that names the set, for data that cannot be read, is shorter than one window, holds a
    token outside the vocabulary, or was encoded with another tokenizer than `data`.
    """
    sets = {}
    for name, place in eval_data:
        try:
            sets[name] = open_dataset(place)
            _check(sets[name], open_dataset(data), block_size, eval_tokens, vocab_size)
        except UserError as error:
            raise UserError(f"eval_data {name}: {error}") from None
    return sets


def _check(dataset: Dataset, trained: Dataset, block_size: int, eval_tokens: int, vocab_size: int) -> None:
    if dataset.tokenizer is not None and trained.tokenizer is not None:
        own, other = dataset.tokenizer.name, trained.tokenizer.name
        if own != other:
            raise UserError(
                f"its tokenizer ({own}) is not that of the training data ({other}); encode it with that one"
            )
    if dataset.vocab_size is not None and dataset.vocab_size > vocab_size:
        raise UserError(f"its vocabulary ({dataset.vocab_size}) is larger than vocab_size ({vocab_size})")
    starts = validation_windows(dataset.val, block_size, max(1, eval_tokens // block_size))
    check_vocabulary(dataset.val.read(starts, block_size + 1), vocab_size)
