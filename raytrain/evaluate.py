"""`python -m raytrain.evaluate RUN --tasks a,b`: a run's model under tasks of lm-evaluation-harness."""

import datetime
from pathlib import Path
from typing import Any

import rich.console
import rich.table
import torch

from raytrain.config.flags import add_plugin_flag
from raytrain.data import open_tokenizer
from raytrain.errors import Parser, UserError, command
from raytrain.plugins.loader import load_named
from raytrain.rundir.folders import find_run, write_json
from raytrain.training.pretrained import load_newest

EVALUATION = "evaluation.json"


@command
def main(argv: list[str] | None = None) -> None:
    """Evaluate a run's model, print a table, and leave the numbers in its folder."""
    load_named(argv)
    parser = Parser("python -m raytrain.evaluate", __doc__)
    add_plugin_flag(parser)
    parser.add_argument("run", help="run folder, or STUDY/TRIAL of a study that keeps its weights (--keep_models)")
    parser.add_argument("--runs", default="runs", help="where runs and studies are kept [runs]")
    parser.add_argument("--tasks", required=True, help="names of tasks, with commas between")
    parser.add_argument("--task_path", metavar="FOLDER", help="of tasks of your own, in YAML; code they name is run")
    parser.add_argument("--num_fewshot", type=int, help="examples before each question [as the task says]")
    parser.add_argument("--limit", type=int, help="documents of each task, the first ones [all]")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences at a time [16]")
    parser.add_argument("--tracking_uri", help="of the MLflow that has the study: log the metrics to the trial's run")
    flags = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("limit", 1), ("num_fewshot", 0)):
        if (value := getattr(flags, name)) is not None and value < least:
            raise UserError(f"{name} ({value}) must be {least} or above")
    tasks = [task.strip() for task in flags.tasks.split(",") if task.strip()]
    if not tasks:
        raise UserError(f"tasks ({flags.tasks!r}) must name one task or more")
    if flags.task_path is not None and not Path(flags.task_path).is_dir():
        raise UserError(f"task_path ({flags.task_path}) is no folder; give one with the YAML files of tasks")
    folder, elsewhere = find_run(flags.run, Path(flags.runs))
    if flags.tracking_uri and folder.absolute().parent.name != "trials":
        raise UserError(f"tracking_uri ({flags.tracking_uri}) goes with a study's trial: {folder} has no run in MLflow")
    try:
        from raytrain.training import harness
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise UserError("evaluate needs lm_eval: pip install 'raytrain[evaluate]'") from None

    config, model, step = load_newest(folder, elsewhere)
    tokenizer = open_tokenizer(config.data)
    if tokenizer is None:
        raise UserError(f"data ({config.data}) has no tokenizer, so no text of a task can be its tokens")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = harness.HarnessLM(model.to(device), tokenizer, flags.batch_size)
    found = harness.evaluate(
        lm, tasks, Path(flags.task_path) if flags.task_path else None, flags.num_fewshot, flags.limit
    )
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    how = {"date": date, "step": step, "num_fewshot": flags.num_fewshot, "limit": flags.limit}
    write_json(folder / EVALUATION, how | found)
    rich.console.Console(soft_wrap=True).print(_table(found["tasks"]))
    print(f"{model.arch.name} at step {step}; written to {folder / EVALUATION}")
    if flags.tracking_uri:
        _log(folder.absolute(), found["tasks"], step, flags.tracking_uri)


def _table(tasks: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table("task", "metric", box=rich.box.SIMPLE_HEAD)
    for heading in ("value", "stderr", "documents"):
        table.add_column(heading, justify="right")
    for name, task in tasks.items():
        for metric, numbers in task["metrics"].items():
            shown = [f"{n:.4f}" if (n := numbers[key]) is not None else "" for key in ("value", "stderr")]
            table.add_row(name, metric, *shown, f"{task['documents'] or ''}")
    return table


def _log(trial: Path, tasks: dict[str, Any], step: int, tracking_uri: str) -> None:
    """Log the numbers to the MLflow run of the study's trial in the folder `trial`. Raises UserError if it has none."""
    from raytrain.tracking.uploader import Uploader  # importing MLflow takes seconds

    ends = {"value": "", "stderr": "_stderr"}
    metrics = {
        f"{name}/{metric}{ends[key]}": number
        for name, task in tasks.items()
        for metric, numbers in task["metrics"].items()
        for key, number in numbers.items()
        if number is not None
    }
    study = trial.parent.parent
    if not Uploader(study, tracking_uri).add(trial.name, metrics, step):
        raise UserError(
            f"tracking_uri ({tracking_uri}) has no run of {study.name}/{trial.name}; send the study, then evaluate "
            f"again: python -m raytrain.track sync {study} --tracking_uri {tracking_uri}"
        )
    print(f"{len(metrics)} metrics are in the MLflow run of {study.name}/{trial.name}")


if __name__ == "__main__":
    raise SystemExit(main())
