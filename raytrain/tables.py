"""Tables and sentences for a terminal of any width. Pure."""

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_UNBOUNDED = 10_000  # columns
_KEY = 12  # columns of the word that a line of facts begins with
_READABLE = 100  # columns of a sentence on a wide terminal


def fit(table: Table, console: Console, dispensable: Sequence[str]) -> Table:
    """`table` without as many of the `dispensable` columns (headings, the first goes first) as `console` is too narrow
    for. Numbers are then never cut; columns of text may fold."""
    unbounded = console.options.update(width=_UNBOUNDED)  # else the measurement ends at the console's own width
    for heading in dispensable:
        if Measurement.get(console, unbounded, table).minimum <= console.width:
            break
        table.columns = [column for column in table.columns if column.header != heading]
    return table


def told(sentences: Sequence[str], width: int) -> str:
    """`sentences` as a list at most `width` columns wide, the first above the others. A word is never cut."""
    first, *others = sentences
    lines = [_wrapped(first, width)]
    return "\n".join([*lines, *(_wrapped(sentence, width, "  - ", "    ") for sentence in others)])


def facts(text: str, width: int) -> str:
    """The lines of `text`, each a word and what is said of it, with what is beyond `width` columns below the latter."""
    return "\n".join(_wrapped(line, width, "", " " * _KEY, most=width) for line in text.splitlines())


def _wrapped(text: str, width: int, first: str = "", rest: str = "", *, most: int = _READABLE) -> str:
    if len(first) + len(text) <= min(width, most):  # as it is: the spaces in it may align something
        return first + text
    return textwrap.fill(
        text,
        max(min(width, most), len(rest) + 1),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
