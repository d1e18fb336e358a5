"""`python -m raytrain.report STUDY`: a study's report as one page of HTML, a summary in Markdown, and its pictures.

`python -m raytrain.report TABLE.csv` prints the answer of a table of runs, where there is no study's folder.
"""

from pathlib import Path

from raytrain.analysis.plain import answer_table, read_table
from raytrain.errors import Parser, command
from raytrain.report.sections import write_report
from raytrain.rundir.folders import find_study


@command
def main(argv: list[str] | None = None) -> None:
    """Write a study's report."""
    parser = Parser("python -m raytrain.report", __doc__)
    parser.add_argument("study", help="a study's name under --runs, or its folder")
    parser.add_argument("--runs", default="runs", help="where studies are kept [runs]")
    parser.add_argument("--out", metavar="DIR", help="where the report goes [the study's folder, in report]")
    table = parser.add_argument_group("for a table (STUDY ends in .csv)")
    table.add_argument("--base", default="llama", help="the preset that levels are compared with [llama]")
    table.add_argument("--scale", help="that of the models, to judge how long they were trained [not known]")
    table.add_argument("--vocab_size", type=int, default=256, help="that of the models [256]")
    table.add_argument("--unigram_loss", type=float, help="nats per token of a run on the plateau [the table's column]")
    table.add_argument("--command", default="", help="what started the runs [python -m raytrain.tune]")
    flags = parser.parse_args(argv)
    if flags.study.endswith(".csv"):
        names = ("base", "scale", "vocab_size", "unigram_loss", "command")
        given = {name: getattr(flags, name) for name in names}
        print("\n".join(answer_table(read_table(flags.study), **given)))
        return
    index, *_ = write_report(find_study(flags.study, Path(flags.runs)), flags.out)
    print(index)


if __name__ == "__main__":
    raise SystemExit(main())
