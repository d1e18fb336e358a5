"""A hook of mkdocs: puts the `--help` of every command into docs/flags.md, where its mark stands."""

import contextlib
import importlib
import io
import os
from typing import Any
from unittest import mock

from raytrain.__main__ import COMMANDS

MARK = "<!-- help -->"
_MODULES = {"report": "report.__main__", "data": "data.__main__"}
_PARTS = {"data": ("prepare", "fetch", "info")}


def help_of(command: str, *part: str) -> str:
    """What `raytrain COMMAND --help` prints, 100 columns wide."""
    main = importlib.import_module(f"raytrain.{_MODULES.get(command, command)}").main
    with (
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.suppress(SystemExit),
        mock.patch.dict(os.environ, COLUMNS="100"),
    ):
        main([*part, "--help"])
    return said.getvalue()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text, with a section for each command in the place of the mark."""
    if MARK not in markdown:
        return markdown
    sections = [(command, ()) for command in COMMANDS]
    sections += [(command, (part,)) for command, parts in _PARTS.items() for part in parts]
    return markdown.replace(
        MARK,
        "\n".join(f"## {' '.join((name, *part))}\n\n```text\n{help_of(name, *part)}```\n" for name, part in sections),
    )
