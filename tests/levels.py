"""The levels of every axis, from the registry itself, for tests that go over all of them."""

import random
from collections.abc import Iterable
from typing import Any

from raytrain.architecture import Architecture, from_dict
from raytrain.axes import AXES
from raytrain.errors import UserError

NUMBERS = {
    "dropout": (0.0, 0.1, 0.25),
    "attention_window": (("full",), (4, "full"), (3, 5, "nope"), ("nope",)),
    "logit_softcap": (0.0, 15.0),
    "rope_fraction": (1.0, 0.5),
    "rope_theta": (10_000.0, 500_000.0),
    "rms_norm_eps": (1e-6, 1e-5),
    "n_expert": (8, 4),
    "n_expert_active": (2, 1),
    "n_shared_expert": (0, 1),
    "moe_balance": (0.01, 0.0),
}  # of the axes that take any number


def levels(axis: str) -> tuple[Any, ...]:
    """Every level of `axis`, or some of one that takes any number. Raises KeyError for one without an entry."""
    return tuple(AXES[axis].levels) or NUMBERS[axis]


def all_levels(axes: Iterable[str] = AXES) -> dict[str, tuple[Any, ...]]:
    """`levels` of each of `axes`."""
    return {axis: levels(axis) for axis in axes}


def random_architectures(count: int, seed: int = 0) -> list[Architecture]:
    """Small ones of any combination of levels, whose dimensions differ from one another."""
    draws = random.Random(seed)
    found: list[Architecture] = []
    while len(found) < count:
        heads = draws.choice((2, 3, 4, 6))
        shape = {"n_layer": draws.choice((1, 2, 3)), "n_head": heads, "n_embd": 2 * heads * draws.choice((2, 4, 5))}
        shape |= {"block_size": draws.choice((7, 16)), "vocab_size": draws.choice((11, 64))}
        shape |= {"n_kv_head": draws.choice([None, *(k for k in range(1, heads + 1) if heads % k == 0)])}
        shape |= {"d_ff": draws.choice((None, 20, 96))}
        try:
            found.append(from_dict({axis: draws.choice(levels(axis)) for axis in AXES} | shape))
        except UserError:  # a combination that cannot be
            continue
    return found
