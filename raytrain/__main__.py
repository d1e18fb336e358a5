"""`raytrain COMMAND ...`, which is `python -m raytrain.COMMAND ...`."""

import importlib
import sys

from raytrain.errors import command, unknown_value
from raytrain.version import __version__

COMMANDS = {
    "tune": "plan, run or resume a sweep over a search space",
    "watch": "how far a study is that runs elsewhere",
    "train": "train one model",
    "compare": "a table of runs",
    "report": "a study's answer, as one page of HTML",
    "presets": "the presets, their axes and costs",
    "data": "prepare a corpus of your own",
    "generate": "text from a trained model",
    "export": "a trained model for Hugging Face",
    "evaluate": "a trained model under tasks of lm-evaluation-harness",
    "replay": "what another design would have said of a study",
    "track": "send a study to MLflow",
}
_USAGE = "usage: raytrain COMMAND ...\n\n{}\n\n`raytrain COMMAND --help` lists the flags of a command."


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command that the first argument names with the others. Raises UserError for an unknown one."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name == "--version":
        print(f"raytrain {__version__}")
        return 0
    if name in ("--help", "-h"):
        print(_USAGE.format("\n".join(f"  {known:<10} {what}" for known, what in COMMANDS.items())))
        return 0
    if name not in COMMANDS:
        raise unknown_value("command", name, COMMANDS)
    module = importlib.import_module(f"raytrain.{name}.__main__" if name in ("report", "data") else f"raytrain.{name}")
    status: int = module.main(rest)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
