"""`python -m raytrain.track sync NAME`: bring a study to MLflow, whole, now or again; or write it for TensorBoard."""

import shlex
from pathlib import Path

from raytrain.errors import Parser, UserError, command
from raytrain.rundir.folders import find_study
from raytrain.uris import shown


@command
def main(argv: list[str] | None = None) -> None:
    """Bring MLflow up to date with a study, or write event files of it."""
    parser = Parser("python -m raytrain.track", __doc__)
    parser.add_argument("action", choices=["sync", "tensorboard"], help="send what MLflow lacks; or write event files")
    parser.add_argument("name", help="a study's name under --runs, or its folder")
    parser.add_argument("--runs", default="runs", help="where studies are kept [runs]")
    parser.add_argument("--tracking_uri", help="MLflow's [$MLFLOW_TRACKING_URI, or mlflow.db under --runs]")
    parser.add_argument(
        "--out", metavar="DIR", help="of event files for TensorBoard [tensorboard in the study's folder]"
    )
    flags = parser.parse_args(argv)
    folder = find_study(flags.name, Path(flags.runs), "name")

    if flags.action == "tensorboard":
        from raytrain.tracking.tensorboard import write_events  # reads tables: pandas takes a second

        out = Path(flags.out) if flags.out else folder / "tensorboard"
        count = write_events(folder, out)
        print(f"{count} trials are in {out}; to see them: tensorboard --logdir {shlex.quote(str(out))}")
        return
    if flags.out is not None:
        raise UserError(f"out ({flags.out}) goes with tensorboard: sync sends to a tracking_uri")

    from raytrain.tracking.uploader import Uploader, ui_command  # importing MLflow takes seconds

    uploader = Uploader(folder, flags.tracking_uri)
    uploader.sync()
    uri = shown(uploader.uri)
    print(f"{folder.name} is in {uri}; to compare: {ui_command(uri)}")


if __name__ == "__main__":
    raise SystemExit(main())
