"""`python -m raytrain.generate RUN --prompt ...`: text from the newest checkpoint, or the kept weights, of a run."""

from pathlib import Path

import numpy as np
import torch

from raytrain.config.flags import add_plugin_flag
from raytrain.data import open_dataset
from raytrain.data.tokenizer import encodable
from raytrain.errors import Parser, UserError, command
from raytrain.plugins.loader import load_named
from raytrain.rundir.folders import find_run
from raytrain.training.pretrained import load_run
from raytrain.training.sampling import sample


@command
def main(argv: list[str] | None = None) -> None:
    """Print text that a run's model continues."""
    load_named(argv)
    parser = Parser("python -m raytrain.generate", __doc__)
    add_plugin_flag(parser)
    parser.add_argument("run", help="run folder, or STUDY/TRIAL of a study that keeps its weights (--keep_models)")
    parser.add_argument("--runs", default="runs", help="where runs and studies are kept [runs]")
    parser.add_argument("--prompt", default="\n", help="text to continue [a line break]")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to write [200]")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token [0.8]")
    parser.add_argument("--top_k", type=int, default=50, help="sample among this many likeliest tokens [50]")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    for name, least in (("tokens", 1), ("top_k", 1), ("temperature", 0)):
        if getattr(flags, name) < least:
            raise UserError(f"{name} ({getattr(flags, name)}) must be {least} or above")
    config, model = load_run(*find_run(flags.run, Path(flags.runs)))
    tokenizer = open_dataset(config.data).tokenizer
    if tokenizer is None:
        raise UserError(f"data ({config.data}) has no tokenizer, so its tokens cannot be read as text")
    text, _ = encodable(flags.prompt, "")
    prompt = tokenizer.encode_batch([text])[0].astype(np.int64)
    if not len(prompt):
        raise UserError("prompt ('') must not be empty")
    generator = torch.Generator().manual_seed(flags.seed)
    written = sample(model, torch.from_numpy(prompt), flags.tokens, flags.temperature, flags.top_k, generator)
    print(tokenizer.decode([t for t in written.tolist() if t < tokenizer.vocab_size]))


if __name__ == "__main__":
    raise SystemExit(main())
