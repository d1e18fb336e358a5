"""`python -m raytrain.export RUN --to huggingface DIR`: a run's model and tokenizer as `transformers` loads them."""

import sys
from pathlib import Path

from raytrain.config.flags import add_plugin_flag
from raytrain.data import open_tokenizer
from raytrain.data.tokenizer import Tokenizer
from raytrain.errors import Parser, UserError, command
from raytrain.plugins.loader import load_named
from raytrain.rundir.folders import find_run
from raytrain.training.pretrained import load_run, save_hugging_face

FORMATS = ("huggingface",)


@command
def main(argv: list[str] | None = None) -> None:
    """Write a run's model in another format."""
    load_named(argv)
    parser = Parser("python -m raytrain.export", __doc__)
    add_plugin_flag(parser)
    parser.add_argument("run", help="run folder, or STUDY/TRIAL of a study that keeps its weights (--keep_models)")
    parser.add_argument("--runs", default="runs", help="where runs and studies are kept [runs]")
    parser.add_argument("--to", nargs=2, metavar=("FORMAT", "DIR"), required=True, help="huggingface, and where")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    flags = parser.parse_args(argv)
    form, folder = flags.to
    if form not in FORMATS:
        raise UserError(f"Unknown format: {form!r}. Available: {', '.join(FORMATS)}.")
    config, model = load_run(*find_run(flags.run, Path(flags.runs)))
    save_hugging_face(model, Path(folder), _tokenizer(config.data), overwrite=flags.overwrite)
    print(f"wrote {model.arch.name} to {folder}")


def _tokenizer(data: str) -> Tokenizer | None:
    """That of the run's data. Weights are worth having without, so if there is none a note says why."""
    try:
        tokenizer = open_tokenizer(data)
        why = f"data ({data}) has none"
    except UserError as error:
        tokenizer, why = None, str(error)
    if tokenizer is None:
        print(f"note: no tokenizer and no end token are written: {why}", file=sys.stderr)
    return tokenizer


if __name__ == "__main__":
    raise SystemExit(main())
