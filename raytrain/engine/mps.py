"""NVIDIA's Multi-Process Service (MPS): kernels of several processes run on a GPU at once, not in turns.

Lanes that share a GPU train models too small to fill it. The service is a program of the driver's; where a study starts
Ray on this machine, it starts one for itself. An error of the device in one process ends all that share the GPU: each
is lost, and tried again.
"""

import contextlib
import functools
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

_CONTROL = "nvidia-cuda-mps-control"
_SWITCH = "RAYTRAIN_MPS"  # 0 leaves GPUs to processes in turns
_PLACES = {"CUDA_MPS_PIPE_DIRECTORY": "pipe", "CUDA_MPS_LOG_DIRECTORY": "log"}
_PATIENCE = 10.0  # seconds that the service may take to start, or to end


def is_on() -> bool:
    """Whether processes that this one starts reach their GPUs through the service."""
    return "CUDA_MPS_PIPE_DIRECTORY" in os.environ


@contextlib.contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Run a service whose sockets and logs are in `folder`, for the processes that this one starts from now on.

    Without its program, with RAYTRAIN_MPS=0, where the user runs a service, or if it does not start, nothing is done.
    """
    control = shutil.which(_CONTROL)
    if control is None or is_on() or os.environ.get(_SWITCH) == "0":
        yield
        return
    places = {variable: folder / name for variable, name in _PLACES.items()}
    for place in places.values():
        place.mkdir(parents=True)
    os.environ |= {variable: str(place) for variable, place in places.items()}
    try:
        if not _called(control, "-d"):
            _forget()
        yield
    finally:
        if is_on():
            _called(control, words="quit\n")
        _forget()


def _called(control: str, *flags: str, words: str = "") -> bool:
    """Whether the service's program, given `words`, did what it was asked to."""
    # All GPUs, so that those of lanes have the same numbers there as here.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    nowhere = subprocess.DEVNULL  # a pipe would stay open with the service, which would be waited for
    call = functools.partial(subprocess.run, [control, *flags], env=environment, stdout=nowhere, stderr=nowhere)
    try:
        done = call(input=words.encode(), timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.debug("%s: %s", control, error)
        return False
    return bool(done.returncode == 0)


def _forget() -> None:
    for variable in _PLACES:
        os.environ.pop(variable, None)
