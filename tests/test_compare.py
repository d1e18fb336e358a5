import json
import os

import pytest
from rich.console import Console

from raytrain import architecture
from raytrain.analysis.ranking import rank, read_study
from raytrain.compare import _DISPENSABLE, _run_table, effects, find_runs, main, read_run, warnings
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.rundir.log import JsonLog
from raytrain.tables import fit
from tests.studies import BUDGET, write_study


@pytest.fixture
def make_run(tmp_path):
    """Writes a run's folder, each one newer than the last, and returns it."""
    made = []

    def make(
        name, val_loss, preset="gpt2", folder=tmp_path / "runs", status="complete", flops=10**12, seed=1, **values
    ):
        axes = {key: value for key, value in values.items() if key in architecture.AXES}
        rest = {key: value for key, value in values.items() if key not in axes}
        arch = architecture.preset(preset, **(architecture.SCALES["tiny"] | {"vocab_size": 256} | axes))
        config = TrainConfig(architecture=arch, flops=1e12, seed=seed, **rest)
        result = {"status": status, "name": arch.name, "hash": arch.hash, "seed": seed, "train_flops": flops}
        result |= {"vocab_size": 256, "data_fingerprint": "f00d", "tokens_per_second": 1234.5, "train_seconds": 2.0}
        result |= {"val_loss": val_loss} if val_loss is not None else {}
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config.to_dict()))
        (folder / name / "result.json").write_text(json.dumps(result))
        made.append(name)
        os.utime(folder / name / "result.json", (len(made), len(made)))
        return folder / name

    return make


@pytest.fixture
def compare(tmp_path, capsys):
    def run(*argv):
        assert main(["--runs", str(tmp_path / "runs"), "--json", *argv]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_study_has_its_own_ranking(make_run, compare, tmp_path, capsys):
    """Would catch: ranks that are not the report's, single seeds in place of means, or a lone run ranked with a study.

    Of the first variant the seeds are 2.9 and 3.1, of the second 2.98 twice: the best run is not of the best variant.
    """
    losses = [2.9, 3.1, 2.98, 2.98]
    folder = write_study(
        tmp_path / "runs" / "study",
        axes={"bias": (False, True)},
        results=lambda index: {"val_loss": losses[index], "mfu": 0.5 if index < 2 else 0.3},
    )
    ranked = rank(read_study(folder))
    found = compare()["runs"]
    assert [os.path.basename(run["folder"]) for run in found] == ["t2", "t3", "t0", "t1"] == list(ranked["trial"])
    for name in ("rank", "hardware_rank", "rank_note"):
        assert [run[name] for run in found] == ranked[name].tolist()
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "shared within the noise" in out
    assert "chance" not in out

    make_run("alone", 2.95)
    mixed = compare()["runs"]
    assert [os.path.basename(run["folder"]) for run in mixed] == ["t0", "alone", "t2", "t3", "t1"]
    assert [run["rank"] for run in mixed] == [1, None, 1, 1, 1]


def effect(rows, axis, value):
    return next(row for row in rows if (row["axis"], row["value"]) == (axis, value))


def test_runs_of_all_kinds_by_loss(make_run, compare, tmp_path):
    """Would catch: a run or a trial not found, a wrong order, or a diverged run's last loss taken for its result."""
    make_run("middle", 2.5)
    make_run("worst", 3.0, folder=tmp_path / "runs" / "study" / "trials")
    diverged = make_run("diverged", None, status="diverged")
    JsonLog(diverged / "log.jsonl").write({"event": "eval", "step": 1, "val_loss": 1.0})
    going = tmp_path / "runs" / "going"
    JsonLog(going / "log.jsonl").write({"event": "start", "name": "some", "seed": 1, "hash": "ab"})
    JsonLog(going / "log.jsonl").write({"event": "eval", "step": 1, "val_loss": 2.0, "train_flops": 5})

    found = compare()["runs"]
    assert [os.path.basename(run["folder"]) for run in found] == ["going", "middle", "worst", "diverged"]
    assert [run["val_loss"] for run in found] == [2.0, 2.5, 3.0, None]
    assert [run["status"] for run in found] == ["unfinished", "complete", "complete", "diverged"]


def test_latest(make_run, compare, tmp_path):
    """Would catch: the oldest runs instead of the newest, or the newest by name."""
    for name in ("c", "a", "b"):
        make_run(name, 2.0)
    folders = [os.path.basename(run["folder"]) for run in compare("--latest", "2")["runs"]]
    assert sorted(folders) == ["a", "b"]
    assert len(compare("--latest", "9")["runs"]) == 3


def test_paths(make_run, compare, tmp_path):
    """Would catch: a run named by its folder, its study or its log not found, or one named twice listed twice."""
    one = make_run("one", 2.0)
    two = make_run("two", 2.5, folder=tmp_path / "elsewhere" / "study" / "trials")
    make_run("other", 3.0)
    JsonLog(one / "log.jsonl").write({"event": "start"})
    found = compare(str(one), str(one / "log.jsonl"), str(tmp_path / "elsewhere" / "study"))["runs"]
    assert [run["folder"] for run in found] == [str(one), str(two)]


def test_effects(make_run):
    """Would catch: a wrong sign, or other axes' share counted as one's own where pairs could tell.

    Losses are 3 - 0.1 with rope - 0.3 with pre, and the run with pre alone is missing: rope's plain difference is
    (2.9 + 2.6) / 2 - 3.0 = -0.25, its paired one -0.1.
    """
    runs = [
        read_run(make_run("neither", 3.0, position_encoding="none")),
        read_run(make_run("rope", 2.9, position_encoding="rope")),
        read_run(make_run("both", 2.6, position_encoding="rope", norm_position="pre")),
    ]
    rows = effects(runs)
    rope = effect(rows, "position_encoding", "rope")
    assert (rope["runs_with"], rope["runs_without"], rope["pairs"]) == (2, 1, 1)
    assert rope["difference"] == pytest.approx(-0.25)
    assert rope["paired"] == pytest.approx(-0.1)
    assert effect(rows, "position_encoding", "none")["paired"] == pytest.approx(0.1)
    assert effect(rows, "norm_position", "pre")["paired"] == pytest.approx(-0.3)
    assert {row["axis"] for row in rows} == {"position_encoding", "norm_position"}


def test_swiglu_is_paired_with_any_activation(make_run):
    """Would catch: the FFN types never paired, since the activation differs too; a dead activation counted."""
    runs = [
        read_run(make_run("gelu", 3.0)),
        read_run(make_run("relu", 3.2, activation="relu")),
        read_run(make_run("swiglu", 2.8, ffn_type="swiglu", activation="relu")),
    ]
    rows = effects(runs)
    swiglu = effect(rows, "ffn_type", "swiglu")
    assert swiglu["pairs"] == 2
    assert swiglu["paired"] == pytest.approx((-0.2 - 0.4) / 2)
    relu = effect(rows, "activation", "relu")
    assert (relu["runs_with"], relu["pairs"]) == (1, 1)


def test_what_is_not_a_pair(make_run):
    """Would catch: runs of other seeds, recipes or presets compared as if one axis were all that differs."""
    runs = [read_run(make_run("base", 3.0))]
    assert effects(runs) == []
    runs.append(read_run(make_run("rate", 2.0, bias=True, learning_rate=1e-2)))
    runs.append(read_run(make_run("seed", 2.0, bias=True, seed=2)))
    runs.append(read_run(make_run("hybrid", 2.0, preset="hybrid")))
    assert {row["pairs"] for row in effects(runs)} == {0}
    assert {row["paired"] for row in effects(runs)} == {None}
    runs.append(read_run(make_run("logged more often", 2.0, bias=True, log_interval=1)))
    assert effect(effects(runs), "bias", True)["pairs"] == 1


def test_runs_of_other_budgets_are_in_no_difference(compare, tmp_path):
    """Would catch: a variant stopped at a sixteenth of the budget, or the baseline's runs for the frontier, that make
    an axis value seem bad or good. Whole runs are 3.0 (neither), 2.8 (pre) and 2.9 (bias)."""
    early = {"status": "stopped", "rung": 0, "val_loss": 4.0, "train_flops": BUDGET // 16}
    changes = [{"val_loss": 3.0}, {"val_loss": 2.8}, {"val_loss": 2.9}, early]
    folder = write_study(
        tmp_path / "runs" / "study",
        axes={"bias": (False, True), "norm_position": ("post", "pre")},
        seeds=1,
        frontier_budgets=(BUDGET / 16,),
        results=lambda index: changes[index] if index < 4 else {},
    )
    for trial in json.loads((folder / "study.json").read_text())["trials"]:
        (folder / "trials" / trial["id"] / "config.json").write_text(json.dumps(trial["config"]))
    found = compare()
    bias = effect(found["effects"], "bias", True)
    assert (bias["runs_with"], bias["runs_without"], bias["pairs"]) == (1, 2, 1)
    assert bias["paired"] == pytest.approx(-0.1)
    assert bias["difference"] == pytest.approx(0)
    assert "runs stopped at a rung, and those for a frontier, count in no axis value's difference" in found["warnings"]


def test_ranks_without_replicates(tmp_path, capsys):
    """Would catch: the order of single seeds said to be shared within the noise, of which nothing is known."""
    assert main([str(write_study(tmp_path / "study", seeds=1))]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(where no variant has two seeds, chance may have made the order)" in out


def test_warnings(make_run):
    """Would catch: differences that seeds or budgets explain, shown as if the axes did."""
    runs = [read_run(make_run("a", 3.0)), read_run(make_run("b", 2.9, bias=True))]
    assert warnings(runs) == ["differences below the seed noise mean nothing; no replicated seeds here"]
    runs.append(read_run(make_run("a again", 3.1, seed=2)))
    assert warnings(runs) == []
    runs.append(read_run(make_run("longer", 2.0, flops=1_006 * 10**9)))
    assert warnings(runs) == ["train_flops differ by a factor of 1.006: a longer run has a lower loss"]
    assert warnings(runs[:1]) == []
    rates = [
        read_run(make_run(f"{rate} {seed}", 2.5, learning_rate=rate, seed=seed))
        for rate in (1e-3, 2e-3)
        for seed in (1, 2)
    ]
    assert warnings(rates) == [
        "runs differ in learning_rate too, which is in the differences of all runs, not in paired ones"
    ]


def test_table(make_run, tmp_path, capsys):
    """Would catch: a figure left out of the table, or a warning left out beside the differences."""
    make_run("a", 3.0)
    make_run("b", 2.5, bias=True)
    assert main(["--runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert out.index("2.5000") < out.index("3.0000")
    assert all(text in out for text in ("1e+12", "1,234", "2.0 s", "-0.5000", "no replicated seeds here"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none"], "none holds no runs"),
        (["a" * 300], "holds no runs"),
        (["notes.txt"], "notes.txt is neither a run folder nor one of a run's files"),
        (["--latest", "0"], "latest (0) must be 1 or more"),
        (["broken"], "result.json is not JSON"),
        (["odd"], "config.json: Unknown norm type: 'rmsnrm'"),
    ],
)
def test_mistakes(make_run, tmp_path, monkeypatch, capsys, argv, message):
    """Would catch: a traceback for a wrong path or a damaged file, or one that is passed over in silence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (make_run("broken", 2.0, folder=tmp_path) / "result.json").write_text("{")
    config = make_run("odd", 2.0, folder=tmp_path) / "config.json"
    config.write_text(config.read_text().replace("layernorm_nobias", "rmsnrm"))
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_no_runs_yet(tmp_path):
    """Would catch: an empty table where there is nothing to compare."""
    with pytest.raises(UserError, match="holds no runs"):
        find_runs([], str(tmp_path))


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_narrow_table_keeps_its_digits(make_run, capsys, monkeypatch, width):
    """Would catch: numbers that are cut where the terminal is narrow."""
    run = make_run("a-long-name-of-a-run", 1.23456, learning_rate=1e-3)
    console = Console(width=width)
    table = fit(_run_table([read_run(run)]), console, _DISPENSABLE)
    console.print(table)
    out = capsys.readouterr().out
    assert "1.2346" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    assert ("gpt2" in out) == (width == 160)
