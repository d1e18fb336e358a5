"""The secrets in a storage's address: handed to the lanes through the memory of Ray's head, and written to no file.

A trial's folder in study.json, in Tune's files and in events is an address without them.
"""

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from raytrain.uris import has_secret, reopened

_NAMESPACE = b"raytrain"


def hand_over(storage: str | None) -> None:
    """Let the lanes of this Ray job open `storage`, an address with its secrets."""
    if storage is not None and has_secret(storage):
        _internal_kv_put(_key(), storage.encode(), overwrite=True, namespace=_NAMESPACE)


def opened(folder: str | None) -> str | None:
    """`folder`, as a lane got it, with the secrets that the driver has handed over."""
    if folder is None:
        return None
    storage = _internal_kv_get(_key(), namespace=_NAMESPACE)
    return reopened(folder, storage.decode() if storage else None)


def _key() -> bytes:
    return f"storage {ray.get_runtime_context().get_job_id()}".encode()
