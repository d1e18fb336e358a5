import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raytrain import tune
from raytrain.accounting.flops import flops_per_token
from raytrain.accounting.memory import peak_memory
from raytrain.analysis.ranking import short_name
from raytrain.config.resolve import resolve
from raytrain.errors import UserError
from raytrain.sweep import plan as plans
from raytrain.sweep.estimate import duration
from raytrain.sweep.plan import Plan


def make(arguments: str) -> Plan:
    return tune._plan(tune._parser().parse_args(arguments.split()))


def test_counts_of_the_full_space() -> None:
    """Would catch two spellings of one variant that are trained twice, and distinct variants taken for one."""
    shown = make("--space full").to_dict()
    assert (shown["points"], shown["programs"], shown["variants"], shown["trials"]) == (2304, 1440, 720, 720)
    assert len(set(shown["trial_ids"])) == 720


def test_a_plan_starts_nothing() -> None:
    """Would catch a plan that waits for the imports of torch, ray or mlflow, and anything but JSON on its stdout."""
    script = (
        "import sys; from raytrain.tune import main; code = main(['--space', 'full', '--plan', '--json']); "
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    plan = json.loads(done.stdout)
    assert plan["variants"] == plan["functions"] == 720  # the second is the name of old scripts


def test_one_budget_for_all() -> None:
    """Would catch a budget in steps, which architectures spend at different rates; all get the base's FLOPs."""
    plan = make("--space full --max_iters 100 --n_embd 64 --n_head 2 --vocab_size 1000 --max_trials 40")
    base = plan.trials[0].config
    per_sequence = [flops_per_token(trial.config.architecture).per_sequence for trial in plan.trials]
    assert plan.budget_flops == 100 * base.batch_sequences * per_sequence[0]
    assert {trial.config.flops for trial in plan.trials} == {float(plan.budget_flops)}
    assert all(
        abs(t.config.train_flops - plan.budget_flops) <= n / 2 for t, n in zip(plan.trials, per_sequence, strict=True)
    )
    assert len(set(per_sequence)) > 1
    assert plan.spread.least < plan.spread.most


def test_order_and_part() -> None:
    """Would catch a sweep in the space's own order, which confounds axes with time; a part that depends on its size; a
    baseline that is left out; and an order that differs between machines."""
    few, many = make("--space full --max_trials 5"), make("--space full --max_trials 50")
    assert few.trials[0].label == "gpt2"
    assert {trial.id for trial in few.trials} < {trial.id for trial in many.trials}
    assert len({trial.config.architecture.normalization for trial in many.trials[:10]}) > 1
    assert [trial.id for trial in few.trials] == [
        trial.id for trial in make("--space full").trials if trial in few.trials
    ]
    assert few.trials[1].id == "4L-3H-96D-RoPE-LN-NB-RELU-PreNorm-f87b23-s1337"


def test_seeds() -> None:
    """Would catch replicates that are one and the same run."""
    plan = make("--space presets --seeds 3 --seed 5")
    assert len(plan.trials) == len({trial.id for trial in plan.trials}) == 12
    assert {trial.config.seed for trial in plan.trials} == {5, 6, 7}
    assert [trial.label for trial in plan.trials[:3]] == ["gpt2"] * 3


def test_ids_of_runs_that_differ_beside_the_architecture(tmp_path: Path) -> None:
    """Would catch trials of one architecture at two learning rates that share, and overwrite, one folder."""
    space = tmp_path / "rates.yaml"
    space.write_text("axes: {learning_rate: [1e-3, 3e-3], bias: [true, false]}")
    plan = make(f"--space {space}")
    assert len({trial.id for trial in plan.trials}) == 4
    assert all("learning_rate=" in trial.id and "/" not in trial.id for trial in plan.trials)


def test_long_labels_of_runs_that_differ_beside_the_architecture(tmp_path: Path) -> None:
    """Would catch a table in which trials of one architecture at two learning rates have one name."""
    space = tmp_path / "rates.yaml"
    space.write_text("axes: {learning_rate: [1e-3, 3e-3], position_encoding: [rope, learned_absolute]}")
    plan = make(f"--space {space} --frontier_budgets 0.25,0.5")
    names = [short_name(trial.to_dict()) for trial in plan.trials if not trial.role]
    assert len(set(names)) == 4
    assert sum("learning_rate=0.003" in name for name in names) == 2
    assert {short_name(trial.to_dict()) for trial in plan.trials if trial.role} == {
        f"gpt2 at {multiple} x the budget" for multiple in ("0.25", "0.5")
    }


def on(monkeypatch: pytest.MonkeyPatch, gpus: list[str]) -> None:
    """Plan for a machine of 4 cores and 16 GB, and `gpus` of 80 GB."""
    machine = plans.Machine(tuple(gpus), 80e9 if gpus else 0.0, 4, 16e9)
    monkeypatch.setattr(plans.Machine, "here", classmethod(lambda cls: machine))


@pytest.mark.parametrize(
    ("gpus", "flags", "rate", "words"),
    [
        (["NVIDIA H200"] * 2, "", 2 * 0.4 * 989e12, "2 x NVIDIA H200 of this machine at an assumed MFU of 40%"),
        (["NVIDIA H200"], "--precision fp32", 0.4 * 67e12, "40% of 67 TFLOP/s"),
        (["Some GPU"], "--peak_tflops 100", 0.4 * 100e12, "40% of 100 TFLOP/s"),
        (["Some GPU"], "", 50e12, "at an assumed 50 TFLOP/s each"),
        (["NVIDIA H200"], "--device cpu", 4 * 50e9, "4 CPU cores of this machine"),
        ([], "", 4 * 50e9, "4 CPU cores of this machine"),
    ],
)
def test_estimate(gpus: list[str], flags: str, rate: float, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an estimate by another device's or dtype's peak, and one that does not say what it rests on."""
    on(monkeypatch, gpus)
    plan = make(f"--space presets {flags}")
    assert plan.estimate.seconds == pytest.approx(plan.total_flops / rate)
    assert words in plan.estimate.basis


def test_a_long_sweep_says_so_with_what_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a sweep of hours that begins without a word, flags that are refused, or that take as long; and a
    warning for a sweep of minutes."""
    on(monkeypatch, [])
    (told,) = [line for line in str(make("--space full")).splitlines() if " is long: " in line]
    ways = re.findall(r"with (--.+?) about ([0-9.]+) min", told)
    assert len(ways) == 2
    for flags, minutes in ways:
        plan = make(f"--space full {flags}")
        assert " is long" not in str(plan)
        assert plan.estimate.seconds == pytest.approx(60 * float(minutes), rel=0.05)
    assert " is long" not in str(make("--space quickstart"))
    assert "with --flops 1e+14 about" in str(make("--space full --design d_optimal --trials 128 --flops 1e15"))


def test_duration() -> None:
    """Would catch seconds said as minutes."""
    assert [duration(s) for s in (0.2, 90, 600, 3 * 3600, 36 * 3600, 7 * 86400)] == [
        "1 s", "90 s", "10 min", "3 h", "36 h", "7 days",
    ]  # fmt: skip


def test_a_design_chooses_the_trials(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a design whose indices are read against another order of the candidates, and a baseline that is not
    replicated: leave_one_out around llama is llama and its five differences from gpt2, each put back alone."""
    flags = "--space full --base llama --design leave_one_out --seeds 2 --plan --json"
    assert tune.main(flags.split()) == 0
    shown = json.loads(capsys.readouterr().out)
    names = [name.rsplit("-", 2)[0] for name in shown["trial_ids"]]
    assert {name: names.count(name) for name in names} == {
        "4L-3H-96D-RoPE-RMS-SwiGLU-PreNorm": 3 + 2,  # llama, and llama with tied weights, which no name tells
        "4L-3H-96D-RoPE-LN-NB-SwiGLU-PreNorm": 2,
        "4L-3H-96D-RoPE-RMS-GELU-PreNorm": 2,
        "4L-3H-96D-AbsPos-RMS-SwiGLU-PreNorm": 2,
        "4L-3H-96D-RoPE-RMS-SwiGLU-PostNorm": 2,
    }
    assert len(set(shown["trial_ids"])) == 13


def test_a_d_optimal_plan_says_what_it_resolves(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch half-widths that go missing, or a design cut short by another count."""
    assert tune.main(["--space", "full", "--design", "d_optimal", "--trials", "128", "--plan", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["trials"] == len(set(shown["trial_ids"])) == 128
    widths = shown["design"]["half_widths_in_noise_sd"]
    assert all(width is not None and 0.3 < width < 1.6 for width in widths.values())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--trials 9", "goes with design random"),
        ("--design d_optimal --max_trials 9", "cannot be combined with design d_optimal"),
        ("--design d_optimal", "needs --trials N"),
        ("--design leave_one_out", "the base is the reference"),
    ],
)
def test_flags_that_a_design_does_not_take(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a flag that is silently ignored."""
    assert tune.main(["--space", "full", "--plan", *flags.split()]) == 2
    assert said in capsys.readouterr().err


def test_rungs_and_what_halving_spends() -> None:
    """Would catch rungs of unequal FLOPs, a cost that forgets the trials that stop, or the branches, trials of the
    frontier that are halved, and a frontier that counts on runs of the base which a rung may stop."""
    flags = "--space presets --seeds 4 --scheduler halving --schedule wsd --rung_decay 0.1 --frontier_budgets 0.5,2"
    plan = make(flags)
    budget = float(plan.budget_flops)
    assert plan.scheduler == {
        "name": "halving", "unit": "variant", "factor": 4, "rungs": [budget / 16, budget / 4], "keep": [1, 1],
        "rung_decay": 0.1,
    }  # fmt: skip
    own = [trial.config for trial in plan.trials if not trial.role]
    frontier = [trial.config for trial in plan.trials if trial.role == "frontier"]
    assert {config.rungs for config in own} == {(budget / 16, budget / 4)}
    assert {config.rungs for config in frontier} == {()}
    assert [config.flops for config in frontier] == [budget * 0.5] * 4 + [budget] * 4 + [budget * 2] * 4
    branches = 0.1 * (16 / 16 + 4 / 4)
    trunk = 16 / 16 + 4 * (1 / 4 - 1 / 16) + 4 * (1 - 1 / 4)
    assert plan.total_flops == pytest.approx(budget * (trunk + branches + 4 * 0.5 + 4 + 4 * 2), rel=1e-3)
    assert "4 -> 1 -> 1 variants, with all their seeds; each scored after a decay of 10% of its FLOPs" in str(plan)
    assert "in mid-schedule" in str(make("--space presets --scheduler halving"))


def test_a_frontier_has_three_budgets_and_noise() -> None:
    """Would catch a frontier that cannot be fitted, found out only after the study."""
    plan = make("--space presets --base llama --frontier_budgets 0.25,0.5")
    assert [(t.config.flops, t.config.seed) for t in plan.trials if t.role] == [
        (plan.budget_flops * m, seed) for m in (0.25, 0.5) for seed in (1337, 1338)
    ]
    with pytest.raises(UserError, match=r"frontier_budgets \(2\): a frontier needs three budgets in all"):
        make("--space presets --frontier_budgets 2")


def test_what_replicates_resolve() -> None:
    """Would catch a plan that promises differences without replicates: t(0.975, 4) sqrt(2 / 2) for 4 x 2 runs."""
    assert make("--space presets").resolution is None
    # t(0.975, 1) of two shared seeds: a difference has one degree of freedom of its own. t(0.975, 4) of own seeds.
    assert make("--space presets --seeds 2").resolution == pytest.approx(12.7062, abs=1e-4)
    assert make("--space presets --seeds 2 --independent_seeds").resolution == pytest.approx(2.7764, abs=1e-4)
    assert make("--space presets --seeds 3").resolution == pytest.approx(4.3027 * (2 / 3) ** 0.5, abs=1e-4)


def test_levels_and_placement_of_trials(tmp_path: Path) -> None:
    """Would catch dead axes that a design or an analysis takes for levels, and large trials without their ranks."""
    space = tmp_path / "s.yaml"
    space.write_text(
        "base: llama\nwhen: {d_ff: {ffn_type: standard}}\naxes: {ffn_type: [swiglu, standard], d_ff: [384, 256]}\n"
        "placement: [{when: {d_ff: 256, ffn_type: standard}, workers: 2}]"
    )
    trials = [trial.to_dict() for trial in make(f"--space {space}").trials]
    assert sorted((t["levels"].get("d_ff", 0), t["levels"]["ffn_type"], t.get("workers")) for t in trials) == [
        (0, "swiglu", None), (256, "standard", 2), (384, "standard", None),
    ]  # fmt: skip


def test_memory_and_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a trial that cannot fit, found out by its out-of-memory error, and GPUs that are counted twice."""
    on(monkeypatch, ["NVIDIA H200"] * 4)
    large = make("--space presets --scale 1.3b --vocab_size 32000 --micro_batch 8")
    assert large.estimate.memory > 40e9
    assert large.estimate.lanes == 4
    assert "that fits in the 80 GB" in str(large)
    assert "does NOT fit" in str(make("--space presets --scale 1.3b --vocab_size 32000 --micro_batch 32"))
    packed = make("--space presets --seeds 4 --trials_per_gpu 3")
    assert (packed.estimate.lanes, packed.estimate.memory_limit) == (12, 80e9 / 3)
    assert make("--space presets --gpus_per_trial 4 --scale small").estimate.lanes == 1


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        (("gpt2", "124m", 64, "single", 1, "none"), 23.0),
        (("gpt2", "124m", 64, "single", 1, "selective"), 16.8),
        (("gpt2", "124m", 16, "single", 1, "selective"), 6.5),
        (("llama", "124m", 64, "single", 1, "none"), 26.1),
        (("llama", "1.3b", 8, "single", 1, "none"), 49.3),
        (("llama", "1.3b", 8, "single", 1, "selective"), 41.7),
        (("llama", "1.3b", 16, "single", 1, "selective"), 60.0),
        (("llama", "1.3b", 8, "zero1", 2, "none"), 56.8),
        (("llama", "1.3b", 8, "fsdp", 2, "none"), 36.7),
        (("llama", "1.3b", 8, "fsdp", 2, "full"), 14.6),
    ],
)
def test_memory_is_near_what_was_measured(arguments: tuple[Any, ...], measured: float) -> None:
    """Would catch a term that is forgotten or counted twice: figures of docs/benchmarks.md, in GB."""
    preset, scale, micro_batch, parallel, size, checkpointing = arguments
    vocabulary = {} if scale == "1.3b" else {"vocab_size": 50304}
    arch = resolve([("test", {"preset": preset, "scale": scale} | vocabulary)])[0].architecture
    bytes_ = peak_memory(arch, micro_batch, parallel=parallel, world_size=size, checkpointing=checkpointing)
    assert bytes_ / 1e9 == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("design", ["", "--design d_optimal --trials 150", "--tune learning_rate=1e-3,2e-3,4e-3"])
def test_independent_seeds_are_nobody_elses(design: str) -> None:
    """Would catch a seed that two variants share, a trial under another seed's name, and other trials than without."""
    space = "--space full" if "design" in design else "--space presets"
    shared, own = make(f"{space} --seeds 2 {design}"), make(f"{space} --seeds 2 --independent_seeds {design}")
    seeds = [trial.config.seed for trial in own.trials]
    assert sorted(seeds) == list(range(1337, 1337 + len(shared.trials)))
    assert all(trial.id.endswith(f"-s{trial.config.seed}") for trial in own.trials)
    variants = [trial.config.replace(seed=0) for trial in own.trials]
    assert variants == [trial.config.replace(seed=0) for trial in shared.trials]
    if own.design is not None and shared.design is not None:
        widths = [
            [precision.half_width for precision in plan.design.precisions if precision.half_width is not None]
            for plan in (own, shared)
        ]
        assert all(mine < theirs for mine, theirs in zip(*widths, strict=True))
