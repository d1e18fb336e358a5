"""`python -m raytrain.watch STUDY`: how far a study is that runs elsewhere: in a process here or on another machine.

The study's folder is all that is read, so the other machine has to share --runs. It shows what `raytrain.tune` shows,
until the study ends; where the output is no terminal, a short line now and then. Ctrl-C ends the watching alone. The
exit code is 1 if trials are left that nobody works on, else 0.
"""

import sys
from pathlib import Path

from raytrain.errors import Parser, command
from raytrain.interrupts import INTERRUPTED
from raytrain.rundir.folders import find_study


@command
def main(argv: list[str] | None = None) -> int:
    """Watch a study."""
    parser = Parser("python -m raytrain.watch", __doc__)
    parser.add_argument("study", help="a study's name under --runs, or its folder")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where studies are kept [runs]")
    parser.add_argument("--once", action="store_true", help="print the present state and end")
    flags = parser.parse_args(argv)
    folder = find_study(flags.study, Path(flags.runs)).absolute()
    try:
        from raytrain.engine.watching import follow  # pandas takes a second to import

        return follow(folder, once=flags.once)
    except KeyboardInterrupt:
        print("no longer watching; the study goes on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
