import io
import types

import pandas as pd
import pytest
from rich.console import Console

from raytrain.engine import progress
from raytrain.engine.progress import Progress, ranking_table
from raytrain.sweep.schedule import Schedule
from tests.sweep.test_schedule import trial as planned_trial

BUDGET = 1e12


def table() -> pd.DataFrame:
    row = {"rank": 1, "hardware_rank": 2, "short_name": "normalization=layernorm ffn_type=standard", "seed": 1337}
    row |= {"val_loss": 1.68732, "train_flops": 2.5e12, "loss_per_flop": 1543000.0, "loss_per_hardware_flop": 12345.0}
    row |= {"compute_gain": 1.261, "compute_gain_low": 0.724, "compute_gain_high": 4.286, "mfu": 0.412, "hash": "a"}
    row |= {"tokens_per_second": 123456.0, "memory_peak_gb": 12.3, "train_seconds": 56.7, "status": "complete"}
    row |= {"budget_ok": True, "role": "", "rank_note": "", "label": "a", "budget_flops": 2.5e12}
    return pd.DataFrame([row, row | {"seed": 1338, "val_loss": 1.68742}])


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_narrow_ranking_keeps_its_digits(width: int) -> None:
    """Would catch a table whose numbers are cut where the terminal is narrow, so that none can be read."""
    console = Console(file=io.StringIO(), width=width)
    console.print(ranking_table(table(), console))
    out = console.file.getvalue()
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    for column, cell in {"val_loss": "1.6874", "rank": "1"}.items():
        assert column in out
        assert cell in out
    assert ("12.3" in out) == (width == 160)


def test_the_ranking_has_a_row_a_variant() -> None:
    """Would catch a row a seed, a mean without its interval or its number of seeds, one that an unranked run is in, and
    a failed seed that nothing tells of."""
    lost = table().iloc[:1].assign(seed=1339, status="oom", val_loss=float("nan"), rank=None, reason="no memory")
    frontier = table().assign(role="frontier", short_name="llama at 2 x the budget", rank=None, hardware_rank=None)
    console = Console(file=io.StringIO(), width=240)
    console.print(ranking_table(pd.concat([table(), lost, frontier], ignore_index=True), console))
    rows = [line.split() for line in console.file.getvalue().splitlines() if "1.68" in line]
    assert len(rows) == 2
    assert rows[0][:2] == ["1", "2"]
    assert rows[0][4:7] == ["2", "1.6874", "0.0006"]  # t of 1 degree of freedom, 12.71 x 7.1e-5 / sqrt 2
    assert "2 complete, 1 oom" in " ".join(rows[0])
    assert "normalization=layernorm ffn_type=standard oom: no memory" in console.file.getvalue()
    assert rows[1][:6] == ["llama", "at", "2", "x", "the", "budget"]
    assert "0.0006" not in rows[1]


def trial(name: str, status: str, **result: object) -> types.SimpleNamespace:
    planned = {"id": f"{name}-s1", "name": name, "seed": 1, "is_ranked": name != "frontier"}
    return types.SimpleNamespace(config={"trial": planned}, status=status, last_result=result)


def begun() -> Schedule:
    schedule = Schedule([planned_trial(f"{name}-s1") for name in ("a", "b", "c", "d")])
    for event in ("begin", "end"):
        schedule.apply({"event": event, "trial": "a-s1", "rung": None, "status": "complete"})
    schedule.apply({"event": "begin", "trial": "b-s1", "rung": None})
    return schedule


TRIALS = [
    trial("a", "TERMINATED", outcome="complete", val_loss=1.5, train_flops=BUDGET),
    trial("frontier", "TERMINATED", outcome="complete", val_loss=1.1, train_flops=4 * BUDGET),
    trial("b", "RUNNING", train_loss=2.25, train_flops=BUDGET / 2, tokens_per_second=1234.0),
]


def test_a_line_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch control codes in a log, a best of another budget, and a time left that leaves running trials out."""
    clock = iter([0.0, 30.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    Progress(begun(), BUDGET, to_stderr=False).report(TRIALS, done=False)
    assert capsys.readouterr().out == (
        "0:30  1 of 4 trials ended, 1 running, 2 waiting; about 0:50 left; best val_loss 1.5000 (a)\n"
    )


def test_a_view_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a view that scrolls in place of being drawn again, and a lane that is not in it."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", terminal)
    view = Progress(begun(), BUDGET, to_stderr=False)
    view.report(TRIALS, done=False)
    assert "   50%  loss 2.2500  1,234 tokens/s  b seed 1\n" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()
    view.report(TRIALS, done=True)
    assert terminal.getvalue().count("\x1b[2F\x1b[J") == 1
