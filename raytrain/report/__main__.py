"""`python -m raytrain.report STUDY`: a study's report as one page of HTML, a summary in Markdown, and its pictures.

It prints the answer, and where the page is on the last line.

`python -m raytrain.report TABLE.csv` prints the answer of a table of runs, where there is no study's folder.
"""

import shutil
import sys
from pathlib import Path

from raytrain.analysis.answer import answer
from raytrain.analysis.plain import answer_table, read_table
from raytrain.errors import Parser, command
from raytrain.report.sections import write_report
from raytrain.rundir.folders import find_study
from raytrain.tables import told


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
        _say(answer_table(read_table(flags.study), **given))
        return
    folder = find_study(flags.study, Path(flags.runs))
    found = answer(folder)
    index, *_ = write_report(folder, flags.out, found)
    _say(found.sentences)
    print(f"\n{index}")


def _say(sentences: list[str]) -> None:
    """One sentence a line, or as wide as the terminal is."""
    print(told(sentences, shutil.get_terminal_size().columns) if sys.stdout.isatty() else "\n".join(sentences))


if __name__ == "__main__":
    raise SystemExit(main())
