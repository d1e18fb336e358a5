"""The optional axes, a level of each alone: what benchmarks go over that are to show all of them."""

from typing import Any

from raytrain.axes import AXES
from raytrain.config.run import TrainConfig


def optional(block_size: int) -> dict[str, dict[str, Any]]:
    """Fields of a run, by what they are called; windows are a quarter of `block_size`. Raises LookupError for an axis
    of the registry that none of them sets."""
    window = block_size // 4
    experts = {"n_expert": 8, "n_expert_active": 2, "n_shared_expert": 1, "moe_balance": 0.01}
    levels: dict[str, dict[str, Any]] = {
        "relu_squared": {"ffn_type": "standard", "activation": "relu_squared"},
        "qk_norm": {"qk_norm": True},
        "attention_window": {"attention_window": [window, window, window, "nope"]},
        "kv heads": {"n_kv_head": 1},
        "sandwich": {"norm_position": "sandwich"},
        "attention_gate": {"attention_gate": "head"},
        "value_embeddings": {"value_embeddings": True},
        "parallel_block": {"parallel_block": True},
        "logit_softcap": {"logit_softcap": 15.0},
        "z_loss": {"z_loss": 1e-3},
        "rope": {"rope_fraction": 0.5, "rope_theta": 5e5},
        "rms_norm_eps": {"rms_norm_eps": 1e-5},
        "moe": {"ffn_type": "moe", **experts},
        "muon": {"optimizer": "muon"},
    }
    named = {field for level in levels.values() for field in level}
    missing = [name for name, axis in AXES.items() if not axis.is_required and name not in named]
    if missing := [name for name in missing if len(AXES[name].levels) != 1]:  # one level is no choice
        raise LookupError(f"no level of {', '.join(missing)} is listed in benchmarks/axes.py")
    return levels


def split(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the architecture, and those of the rest of a run."""
    rest = {name: value for name, value in fields.items() if name in TrainConfig.__dataclass_fields__}
    return {name: value for name, value in fields.items() if name not in rest}, rest
