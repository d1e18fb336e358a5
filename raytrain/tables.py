"""Tables for a terminal of any width. Pure."""

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_UNBOUNDED = 10_000  # columns


def fit(table: Table, console: Console, dispensable: Sequence[str]) -> Table:
    """`table` without as many of the `dispensable` columns (headings, the first goes first) as `console` is too narrow
    for. Numbers are then never cut; columns of text may fold."""
    unbounded = console.options.update(width=_UNBOUNDED)  # else the measurement ends at the console's own width
    for heading in dispensable:
        if Measurement.get(console, unbounded, table).minimum <= console.width:
            break
        table.columns = [column for column in table.columns if column.header != heading]
    return table
