"""`python -m raytrain.track sync NAME`: bring a study to MLflow, whole, now or again."""

from pathlib import Path

from raytrain.errors import Parser, command
from raytrain.rundir.folders import find_study
from raytrain.uris import shown


@command
def main(argv: list[str] | None = None) -> None:
    """Bring MLflow up to date with a study."""
    parser = Parser("python -m raytrain.track", __doc__)
    parser.add_argument("action", choices=["sync"], help="send what MLflow does not have yet")
    parser.add_argument("name", help="a study's name under --runs, or its folder")
    parser.add_argument("--runs", default="runs", help="where studies are kept [runs]")
    parser.add_argument("--tracking_uri", help="MLflow's [$MLFLOW_TRACKING_URI, or mlflow.db under --runs]")
    flags = parser.parse_args(argv)
    folder = find_study(flags.name, Path(flags.runs), "name")

    from raytrain.tracking.uploader import Uploader, ui_command  # importing MLflow takes seconds

    uploader = Uploader(folder, flags.tracking_uri)
    uploader.sync()
    uri = shown(uploader.uri)
    print(f"{folder.name} is in {uri}; to compare: {ui_command(uri)}")


if __name__ == "__main__":
    raise SystemExit(main())
