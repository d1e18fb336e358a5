"""Data: documents to token shards (`python -m raytrain.data prepare`), and shards to the sequences of a run.

Read in the order corpora, splits, tokenizer, shards, prepare, dataset, loader; `fetch`, which makes a corpus of Python
packages, stands apart (lock, wheels, selection, near). Nothing here knows torch.
"""

from raytrain.data.dataset import Dataset, Tokens, open_dataset, open_tokenizer
from raytrain.data.loader import Loader, validation_windows

__all__ = ["Dataset", "Loader", "Tokens", "open_dataset", "open_tokenizer", "validation_windows"]
