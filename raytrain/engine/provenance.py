"""By what a study was made: the commit of this code, and versions."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import ray

from raytrain import version


def git_commit() -> str | None:
    """The commit that this code is checked out at; None for an installed package."""
    package = Path(version.__file__)
    git = ["git", "-C", str(package.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", package.name], check=True, capture_output=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Those of Python and of what results depend on."""
    own, torch = version.__version__, importlib.metadata.version("torch")
    return {"python": platform.python_version(), "torch": torch, "ray": ray.__version__, "raytrain": own}
