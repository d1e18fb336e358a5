"""Which numbers of a run are metrics, with a value at each step, and which it has one of."""

import math
from typing import Any

# Numbers that a run has one of would each be a chart of one point. What follows from its configuration and data is a
# param; what another attempt may change, as MLflow's params never change, is a tag.
FIXED = ["parameters", "flops_per_token", "flops_per_token_causal", "attention_ffn_ratio", "unigram_loss"]
FIXED += ["total_steps", "total_tokens", "total_flops"]
OF_ATTEMPT = ["world_size", "micro_batch", "peak_tflops", "tokens_per_second_at_50_mfu", "first_step"]
OF_ATTEMPT += ["restored_seconds", "restored_eval_seconds"]
_NOT_METRICS = {"event", "step", "time", "seed", "vocab_size", "budget_ok", *FIXED, *OF_ATTEMPT}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The metrics among `values`: finite numbers."""
    return {
        key: float(value)
        for key, value in values.items()
        if key not in _NOT_METRICS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }
