"""`python -m raytrain.compare`: runs ranked by validation loss, and what each axis value seems to bring.

The trials of one study come in its ranking's order, with the ranks that its report gives.
"""

import dataclasses
import itertools
import json
import os.path
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from raytrain import architecture
from raytrain.accounting.flops import flops_per_token
from raytrain.analysis.trials import BUDGET_TOLERANCE, OWN_ROLES
from raytrain.architecture import AXES
from raytrain.axes import may_kill, plugin
from raytrain.config.flags import add_plugin_flag
from raytrain.config.run import STOPS
from raytrain.config.run import read_run as config_of
from raytrain.errors import Parser, UserError, command
from raytrain.plugins.loader import load_named
from raytrain.rundir.folders import in_runs
from raytrain.rundir.run import LOG, RESULT, RunFolder
from raytrain.tables import fit

_FILES = (RESULT, LOG)
# Columns that a narrow terminal can do without, the first goes first.
_DISPENSABLE = ("time", "FLOPs/token", "tokens/s", "preset", "FLOPs", "val_bpb", "by hw", "MFU", "status", "run")
_SHOWN = ("name", "status", "seed", "val_loss", "val_bpb", "mfu", "train_flops", "tokens_per_second")
# Fields of a run that change how it is carried out, not what it learns; and scale, which only names other fields.
_MEANS = {"scale", "micro_batch", "device", "compile", "parallel", "fsdp_shard_size", "activation_checkpointing"}
_MEANS |= {"peak_tflops", "eval_interval", "evaluations", "eval_data", "log_interval", "stats_interval"}
_MEANS |= {"checkpoint_interval", "keep_checkpoints", "plugins"}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run's folder and facts. `axes` has no dead axis; `setting` is all else that the run's loss depends on.

    Both are empty for a folder without a config.json. `ranking` is what `analysis.ranking.rank` gives of a study's
    trial: its `rank`, `hardware_rank`, `rank_note`, `role` and `place` in the order, and whether its study `has_noise`
    to rank by; empty for other runs.
    """

    folder: Path
    facts: dict[str, Any]
    axes: dict[str, Any]
    setting: dict[str, Any]
    ranking: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def study(self) -> Path | None:
        """The folder of the study that the run is a trial of."""
        folder = self.folder.absolute().parent
        return folder.parent if folder.name == "trials" and (folder.parent / "study.json").exists() else None

    @property
    def loss(self) -> float | None:
        """Validation loss, nats per token; None before the first evaluation and after a divergence."""
        out: float | None = self.facts["val_loss"]
        return out


def find_runs(paths: Sequence[str], root: str = "runs", latest: int | None = None) -> list[Path]:
    """The run folders in `paths`, or all under `root`; oldest first.

    A path is a run's folder, a study's, or a run's log; a plain name is first that of a folder in `root`. Raises
    UserError for a path that is none of these, and if there are no runs.
    """
    if latest is not None and latest < 1:
        raise UserError(f"latest ({latest}) must be 1 or more")
    written: dict[Path, float] = {}
    for path in [in_runs(path, Path(root)) for path in paths] or [Path(root)]:
        is_file = os.path.isfile(path)  # Path.is_file raises for a name too long for any file
        if is_file and path.name not in _FILES:
            raise UserError(f"{path} is neither a run folder nor one of a run's files ({', '.join(_FILES)})")
        folder = path.parent if is_file else path
        files = [file for name in _FILES for file in folder.rglob(name)] if os.path.isdir(folder) else []
        if not files:
            raise UserError(f"{path} holds no runs: no {' or '.join(_FILES)} in it")
        for file in files:
            written[file.parent] = max(written.get(file.parent, 0.0), file.stat().st_mtime)
    return sorted(written, key=lambda folder: (written[folder], folder))[-latest if latest else 0 :]


def read_run(folder: Path) -> Run:
    """Raises UserError for files that cannot be read."""
    run = RunFolder(folder)
    facts = {key: run.facts.get(key) for key in (*_SHOWN, "hash", "vocab_size", "data_fingerprint")}
    facts |= {"preset": None, "flops_per_token": None, "seconds": run.result.get("train_seconds")}
    if not run.has_ended:
        facts |= {"status": "unfinished", "seconds": run.seconds}
    if (config := config_of(run)) is None:
        return Run(folder, facts, {}, {})
    arch = config.architecture
    program, plain = arch.program(), dataclasses.replace(arch, d_ff=None)
    axes = {axis: program.value(axis) for axis in AXES if axis not in arch.dead}
    setting = {field: value for field, value in config.flat().items() if field not in (*AXES, *_MEANS)}
    setting |= {size: getattr(program, size) for size in architecture.SIZES if size != "d_ff"}
    facts |= {"preset": architecture.preset_of(arch), "flops_per_token": flops_per_token(arch).total}
    setting["d_ff"] = None if plain.ffn_width == arch.ffn_width else arch.ffn_width
    return Run(folder, facts, axes, setting)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """`read_run` of each. All plugins are known first: an axis that one run has, another has at its default."""
    for folder in folders:
        plugin.recall((RunFolder(folder).config or {}).get("plugins", ()))
    return [read_run(folder) for folder in folders]


def with_rankings(runs: Iterable[Run]) -> list[Run]:
    """`runs`, best first, those of studies with their ranking. All of one study: in its order; else by loss."""
    from raytrain.analysis.ranking import budget_noise, rank, read_study  # here: SciPy, which takes a while to import

    runs = list(runs)
    studies = {run.study for run in runs}
    rankings: dict[Path, dict[str, Any]] = {}
    for study in filter(None, studies):
        table = rank(read_study(study))
        has_noise = budget_noise(table) is not None
        for place, row in enumerate(table.to_dict("records")):
            ranks = {name: None if pd.isna(row[name]) else int(row[name]) for name in ("rank", "hardware_rank")}
            ranks |= {"rank_note": row["rank_note"], "role": row["role"], "place": place, "has_noise": has_noise}
            rankings[study / "trials" / row["trial"]] = ranks
    runs = [dataclasses.replace(run, ranking=rankings.get(run.folder.absolute(), {})) for run in runs]
    one_study = len(studies) == 1 and all(run.ranking for run in runs)
    return sorted(runs, key=lambda run: (run.ranking["place"] if one_study else 0, run.loss is None, run.loss or 0))


def effects(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """For each axis with several values, a row a value.

    `difference` is the mean loss of runs with the value less that of runs without, whatever else differs between them.
    `paired` is the mean over `pairs`, two runs that differ in that axis alone, and None without one. What a level of
    the axis leaves dead may differ too: a swiglu run is paired with standard runs of any activation.
    """
    rows = []
    losses = {run: run.loss for run in runs if run.axes and run.loss is not None}
    for axis in AXES:
        having = [run for run in losses if axis in run.axes]
        values = sorted({run.axes[axis] for run in having}, key=str)
        alike = defaultdict(list)
        for run in having:
            ignored = {axis, *may_kill(axis)}
            rest = {name: value for name, value in run.axes.items() if name not in ignored}
            alike[_key(rest, run.setting)].append(run)
        for value in values if len(values) > 1 else []:
            sides = [[losses[run] for run in having if (run.axes[axis] == value) is side] for side in (True, False)]
            pairs = [
                losses[a] - losses[b]
                for group in alike.values()
                for a, b in itertools.permutations(group, 2)
                if a.axes[axis] == value != b.axes[axis]
            ]
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "runs_with": len(sides[0]),
                    "runs_without": len(sides[1]),
                    "difference": statistics.fmean(sides[0]) - statistics.fmean(sides[1]),
                    "paired": statistics.fmean(pairs) if pairs else None,
                    "pairs": len(pairs),
                }
            )
    return rows


def warnings(runs: Iterable[Run]) -> list[str]:
    """What keeps the losses of `runs` from being compared."""
    runs = [run for run in runs if run.loss is not None]
    if len(runs) < 2:
        return []
    lines = []
    seeds = defaultdict(set)
    for run in runs:
        seeds[_key(run.facts["hash"], run.setting | {"seed": None})].add(run.facts["seed"])
    if max(len(group) for group in seeds.values()) < 2:
        lines.append("differences below the seed noise mean nothing; no replicated seeds here")
    flops = [run.facts["train_flops"] for run in runs if run.facts["train_flops"]]
    if flops and max(flops) > min(flops) * (1 + BUDGET_TOLERANCE):
        lines.append(f"train_flops differ by a factor of {max(flops) / min(flops):.4g}: a longer run has a lower loss")
    if len({(run.facts["data_fingerprint"], run.facts["vocab_size"]) for run in runs}) > 1:
        lines.append("data or vocabularies differ: these losses are not of one task")
    fields = sorted({field for run in runs for field in run.setting} - {"seed", "data", "vocab_size", *STOPS})
    unlike = [field for field in fields if len({_key(run.setting.get(field)) for run in runs}) > 1]
    if unlike:
        words = "is in the differences of all runs, not in paired ones"
        lines.append(f"runs differ in {', '.join(unlike)} too, which {words}")
    if any(run.facts["status"] in ("unfinished", "interrupted") for run in runs):
        lines.append("some runs have not ended: their losses are those so far, and count in no axis value's difference")
    if any(run.facts["status"] == "stopped" or run.ranking.get("role") == "frontier" for run in runs):
        lines.append("runs stopped at a rung, and those for a frontier, count in no axis value's difference")
    return lines


def has_whole_budget(run: Run) -> bool:
    """Whether the run's loss is that of what it was to spend: not of a rung, nor of another budget for a frontier; and
    not of a learning rate that is further from its variant's best than another that was tried."""
    return run.facts["status"] == "complete" and run.ranking.get("role", "") in OWN_ROLES


def rate_scope(runs: Iterable[Run]) -> str:
    """At which learning rates the losses of `runs` are compared; empty where nothing is known of them."""
    runs = [run for run in runs if run.loss is not None and run.setting]
    if any(run.ranking.get("role") == "tuning" for run in runs):
        return "each variant of a tuned study at the learning rate tried that is nearest to its own best"
    rates = sorted({run.setting["learning_rate"] for run in runs if "learning_rate" in run.setting})
    if not rates:
        return ""
    if len(rates) > 1:
        return f"at {len(rates)} learning rates, {rates[0]:g} to {rates[-1]:g}"
    return f"at learning rate {rates[0]:g} alone: another can change the order, and the sign of a difference"


@command
def main(argv: list[str] | None = None) -> int | None:
    """Print the table of runs."""
    load_named(argv)
    parser = Parser("python -m raytrain.compare", __doc__)
    parser.add_argument("paths", nargs="*", metavar="RUN", help="runs or studies, by name or path; or logs [all]")
    parser.add_argument("--runs", default="runs", help="where run folders are kept [runs]")
    parser.add_argument("--latest", type=int, metavar="N", help="only the N runs that were written to last")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_plugin_flag(parser)
    flags = parser.parse_args(argv)

    runs = with_rankings(read_runs(find_runs(flags.paths, flags.runs, flags.latest)))
    differences = effects(filter(has_whole_budget, runs))
    found_warnings = warnings(runs)
    if flags.json:
        empty = dict.fromkeys(("rank", "hardware_rank", "rank_note"))
        rows = [{"folder": str(run.folder), **run.facts, **empty, **run.ranking, "axes": run.axes} for run in runs]
        output = {"runs": rows, "effects": differences, "warnings": found_warnings, "learning_rates": rate_scope(runs)}
        print(json.dumps(output, indent=1))
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(fit(_run_table(runs), console, _DISPENSABLE))
    if differences:
        console.print(
            "What each axis value seems to bring: val_loss with it less val_loss without (below 0 is better)."
        )
        console.print(
            "all runs: other axes differ too, so it may be theirs; paired: runs that differ in this axis alone."
        )
        console.print(fit(_effect_table(differences), console, ("without", "with", "pairs", "all runs")))
    if scope := rate_scope(runs):
        console.print(f"All of this is {scope}.")
    for warning in found_warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}")
    return 0


def _run_table(runs: list[Run]) -> Table:
    is_ranked = any(run.ranking for run in runs)
    moved = any(run.ranking.get("rank_note") for run in runs)
    is_strict = any(run.ranking and not run.ranking["has_noise"] for run in runs)
    caption = "rank: place in its study, shared within the noise"
    caption += " (where no variant has two seeds, chance may have made the order)" if is_strict else ""
    caption += "; by hw: the same by hardware FLOPs"
    caption += ", * where that order is another" if moved else ""
    table = Table(
        box=box.SIMPLE, padding=0, caption=caption if is_ranked else None, caption_justify="left", caption_style="none"
    )
    for heading in ("rank", "by hw") if is_ranked else ():
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("name", "preset", "run"):
        table.add_column(heading, overflow="fold")
    for heading in ("val_loss", "val_bpb", "MFU", "FLOPs", "FLOPs/token", "tokens/s", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status")
    for run in runs:
        facts, name = run.facts, run.facts["name"] or "?"
        study = run.folder.parent.parent.name if run.folder.parent.name == "trials" else ""
        ranks = [_text("{}", run.ranking.get("rank")), _text("{}", run.ranking.get("hardware_rank"))]
        ranks[1] = "*" * bool(run.ranking.get("rank_note")) + ranks[1]
        table.add_row(
            *(ranks if is_ranked else ()),
            name,
            facts["preset"] or "-",
            f"{study} {run.folder.absolute().name.removeprefix(name + '-')}".strip(),
            _text("{:.4f}", facts["val_loss"]),
            _text("{:.4f}", facts["val_bpb"]),
            _text("{:.1%}", facts["mfu"]),
            _text("{:.4g}", facts["train_flops"]),
            _text("{:.4g}", facts["flops_per_token"]),
            _text("{:,.0f}", facts["tokens_per_second"]),
            _text("{:.1f} s", facts["seconds"]),
            facts["status"],
        )
    return table


def _effect_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("axis", "value"):
        table.add_column(heading)
    for heading in ("all runs", "with", "without", "paired", "pairs"):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = (str(row["runs_with"]), str(row["runs_without"]))
        paired = _text("{:+.4f}", row["paired"])
        table.add_row(row["axis"], str(row["value"]), f"{row['difference']:+.4f}", *counts, paired, str(row["pairs"]))
    return table


def _text(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


if __name__ == "__main__":
    raise SystemExit(main())
