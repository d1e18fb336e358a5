"""`python -m raytrain.report STUDY`: a study's report as one page of HTML, a summary in Markdown, and its pictures."""

import os.path
from pathlib import Path

from raytrain.errors import Parser, UserError, command
from raytrain.report.sections import write_report
from raytrain.rundir.folders import no_study


@command
def main(argv: list[str] | None = None) -> None:
    """Write a study's report."""
    parser = Parser("python -m raytrain.report", __doc__)
    parser.add_argument("study", help="a study's folder, or its name under --runs")
    parser.add_argument("--runs", default="runs", help="where studies are kept [runs]")
    parser.add_argument("--out", metavar="DIR", help="where the report goes [the study's folder, in report]")
    flags = parser.parse_args(argv)
    index, *_ = write_report(find_study(flags.study, Path(flags.runs)), flags.out)
    print(index)


def find_study(study: str, runs: Path) -> Path:
    """The folder of `study`: a path, or a name in `runs`. Raises UserError if there is neither."""
    for folder in (Path(study), runs / study):
        if os.path.isfile(folder / "study.json"):  # Path.is_file raises for a name too long for any file
            return folder
    if os.path.isdir(study):
        raise UserError(f"study ({study}) is a folder, but no study's: it has no study.json")
    raise no_study("study", study, runs)


if __name__ == "__main__":
    raise SystemExit(main())
