"""Plugins from files and packages: located, run once, identified by their source's digest, sent to other processes.

A plugin is code, and runs with all rights of the process: nothing here runs one that the command line, a YAML file of
the user's or an installed package does not name. What a run's folder holds is never run.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raytrain.axes import registered, restore
from raytrain.axes.plugin import INLINE, LOADED, Plugin, forget
from raytrain.errors import UserError
from raytrain.rundir.parse import parse_yaml, read_bounded

ENTRY_POINTS = "raytrain.plugins"  # the group in which a package names its plugins: modules
_origin = INLINE


def origin() -> str:
    """The plugin that is being loaded, or that this process registers levels itself."""
    return _origin


def load(path: str | Path) -> Plugin:
    """Run the plugin in the file `path` and return it; one that is loaded already, with the same source, is left.

    Raises UserError, one line, if it cannot be read, fails, registers a taken name, or has another source than a plugin
    of its name that this process has loaded. Nothing that it registered remains then.
    """
    file = Path(path).absolute()
    try:
        source = read_bounded(file)
    except UserError as error:
        raise UserError(f"plugin ({path}) cannot be read: {error}") from None
    return _load(file, file.name, source)


def load_source(name: str, source: str) -> Plugin:
    """Run a plugin that another process has loaded, from its source."""
    digest = _digest(source)
    if name in LOADED and LOADED[name].sha256 == digest:
        return LOADED[name]
    file = _folder() / digest[:16] / name  # a file, for tracebacks and for what reads its own source
    file.parent.mkdir(exist_ok=True)
    file.write_text(source, encoding="utf-8")
    return _load(file, name, source)


@functools.cache
def _folder() -> Path:
    """A folder of this process alone. It goes with the node's temporary files."""
    return Path(tempfile.mkdtemp(prefix="raytrain-plugins-"))


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _load(file: Path, name: str, source: str) -> Plugin:
    plugin = Plugin(name, _digest(source), source, str(file))
    if name in LOADED:
        if LOADED[name].sha256 == plugin.sha256:
            return LOADED[name]
        raise UserError(
            f"plugin {name} is loaded already, with sha256 {LOADED[name].sha256}, not {plugin.sha256}: "
            "start another process, or give it another name"
        )
    before = registered()
    forget(name)
    try:
        with _registering_for(name):
            _run(file, f"raytrain_plugin_{plugin.sha256[:16]}")
    except BaseException as error:
        restore(before)
        if not isinstance(error, Exception | SystemExit):
            raise
        raise UserError(f"plugin {name}{_line_of(error, file)}: {_said(error)}") from None
    LOADED[name] = plugin
    return plugin


@contextlib.contextmanager
def _registering_for(name: str) -> Iterator[None]:
    global _origin
    before, _origin = _origin, name
    try:
        yield
    finally:
        _origin = before


def _run(file: Path, module_name: str) -> None:
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UserError("it must be a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _line_of(error: BaseException, file: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}" if text else type(error).__name__


def line_in_plugin(error: BaseException) -> str:
    """The innermost place of `error` in a plugin, as "plugin NAME, line N"; empty if it did not pass through one."""
    places = {plugin.path: plugin.name for plugin in LOADED.values()}
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f"plugin {places[f.filename]}, line {f.lineno}" for f in frames if f.filename in places]
    return inside[-1] if inside else ""


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Name and source of each plugin that a run's config (`TrainConfig.to_dict`) uses, for the process that trains it.

    Raises UserError for levels that were registered outside of a file, which no other process can have.
    """
    names = [record["name"] for record in config.get("plugins", ())]
    if INLINE in names:
        raise UserError(
            "levels that this process registered itself cannot reach another: put them into a plugin's file"
        )
    return {name: LOADED[name].source for name in names}


def write_sources(folder: Path, plugins: Mapping[str, str]) -> None:
    """Keep the sources of plugins, by name, in the folder of a run or a study. They are a record, and never run."""
    for name, source in plugins.items():
        (folder / "plugins").mkdir(exist_ok=True)
        (folder / "plugins" / name).write_text(source, encoding="utf-8")


def load_installed() -> None:
    """Load what installed packages name in the entry-point group `raytrain.plugins`."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.origin is None:
            raise UserError(f"plugin {entry.name} ({entry.value}) of an installed package cannot be found")
        file = Path(spec.origin)
        _load(file, f"{entry.name}.py", file.read_text(encoding="utf-8"))


def load_named(argv: Sequence[str] | None) -> list[Plugin]:
    """Load the plugins that a command line names: with --plugin, or in the YAML files of its --config and --space.

    Before it is parsed, since a plugin's axes are flags. Returns those that were not loaded before, which what trains
    or plans holds against what they build (`training.plugin_check`). Raises UserError for what `load` does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    before = set(LOADED)
    load_installed()
    for path in _values(words, "--plugin"):
        load(path)
    for flag in ("--config", "--space"):
        for file in map(Path, _values(words, flag)):
            if file.suffix in (".yaml", ".yml") and file.is_file():
                for name in _listed(file):
                    load(file.parent / name)
    return [plugin for name, plugin in LOADED.items() if name not in before]


def _values(words: Sequence[str], flag: str) -> Iterator[str]:
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            yield words[index + 1]
        elif word.startswith(f"{flag}="):
            yield word.partition("=")[2]


def _listed(path: Path) -> Iterable[str]:
    """The plugins of a YAML file, relative to its folder. A file that is wrong otherwise is for its own reader."""
    try:
        content = parse_yaml(read_bounded(path))
    except UserError:
        return ()
    names = content.get("plugins") or () if isinstance(content, dict) else ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"plugins in {path} must be a list of files")
    return names
