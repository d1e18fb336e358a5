"""The version of the installed package. Pure."""

import importlib.metadata

try:
    __version__ = importlib.metadata.version("raytrain")
except importlib.metadata.PackageNotFoundError:  # run from a working tree
    __version__ = "unknown"
