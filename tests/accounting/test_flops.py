"""FLOPs against PyTorch's counter and published figures; parameters against the built model."""

import csv
import itertools
import pathlib

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raytrain.accounting.flops import COMPONENTS, flops_per_token, parameter_count
from raytrain.architecture import Architecture, preset
from raytrain.errors import UserError
from raytrain.model import Transformer
from raytrain.sweep.space import load_space
from tests.levels import random_architectures

FULL_SPACE = load_space("full").levels
# Every two dimensions differ, so that no term of the formula can stand in for another.
SMALL = {"n_layer": 1, "n_head": 6, "n_kv_head": 2, "n_embd": 24, "d_ff": 20, "block_size": 7, "vocab_size": 11}

REFERENCE = list(csv.DictReader((pathlib.Path(__file__).parent / "reference" / "flops_reference.csv").open()))
BY_ID = {"argvalues": REFERENCE, "ids": [row["id"] for row in REFERENCE]}


def programs(**size: int) -> list[Architecture]:
    points = (
        Architecture(**dict(zip(FULL_SPACE, p, strict=True)), **size) for p in itertools.product(*FULL_SPACE.values())
    )
    return list(dict.fromkeys(point.program() for point in points))


def counted(arch: Architecture, seq_len: int, device: str) -> tuple[int, int]:
    """(forward, forward and backward) FLOPs of one sequence as the counter sees them.

    Within a window the fused form computes more than the window's products; the manual one those alone.
    """
    if any(isinstance(entry, int) for entry in arch.attention_window):
        arch = arch.replace(attention_backend="manual")
    with torch.device(device):
        model, tokens = Transformer(arch), torch.zeros(1, seq_len, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(tokens)
        forward = counter.get_total_flops()
        logits.sum().backward()
    return forward, counter.get_total_flops()


def expected(arch: Architecture, seq_len: int) -> tuple[int, int]:
    flops = flops_per_token(arch, seq_len)
    return seq_len * flops.forward, flops.per_sequence


def of_row(row: dict[str, str], **changes: object) -> Architecture:
    sizes = ("n_layer", "n_head", "n_kv_head", "n_embd", "d_ff", "vocab_size")
    return preset(
        "llama" if row["gated"] == "1" else "openai_gpt2",
        **{size: int(row[size]) for size in sizes},
        block_size=int(row["seq_len"]),
        weight_tying=row["tied"] == "1",
    ).replace(**changes)


def test_all_programs_of_the_full_space_equal_the_counter():
    """Catches: any term that is wrong, missing or twice in some combination of axes."""
    # On the CPU rather than on meta, whose Python kernels take five times as long; the counts are the same.
    every = programs(**SMALL)
    assert len(every) == 1440
    wrong = [arch for arch in every if counted(arch, 5, "cpu") != expected(arch, 5)]
    assert not wrong, f"{len(wrong)} programs, such as {wrong[0]}"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "size",
    [
        {"n_layer": 3},
        {"n_kv_head": 1},
        {"n_kv_head": None},
        {"n_head": 1, "n_kv_head": 1},
        {"d_ff": None, "block_size": 40},
    ],
    ids=str,
)
def test_sizes_equal_the_counter(name: str, size: dict[str, int | None]):
    """Catches: a term that is right at one number of layers or kv heads only, or another sequence length."""
    arch = preset(name, **SMALL | size)
    for seq_len in (1, arch.block_size):
        assert counted(arch, seq_len, "meta") == expected(arch, seq_len)


@pytest.mark.parametrize(
    ("arch", "parameters", "forward", "training"),
    [
        (preset("openai_gpt2", vocab_size=50257), 124_439_808, 291_648_307_200, 874_944_921_600),
        (preset("openai_gpt2", vocab_size=50304), 124_475_904, 291_722_231_808, 875_166_695_424),
        (preset("llama", n_kv_head=4, vocab_size=32000), 124_668_672, 243_605_176_320, 730_815_528_960),
    ],
    ids=["gpt2-124m", "gpt2-124m-padded", "llama-124m"],
)
def test_reference_integers(arch: Architecture, parameters: int, forward: int, training: int):
    """Catches: formula and counter wrong together, since these figures are known from elsewhere."""
    assert expected(arch, 1024) == (forward, training) == counted(arch, 1024, "meta")
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(arch).parameters()) == parameters
    assert parameter_count(arch)["total"] == parameters


@pytest.mark.parametrize("row", **BY_ID)
def test_published_models(row: dict[str, str]):
    """Catches: a figure that is not what others mean by the same convention, at sizes that no test can build."""
    arch = of_row(row)
    full, causal = flops_per_token(arch), flops_per_token(arch, attention="causal")
    assert full.total == int(row["full"])
    # T/2 there, (T + 1)/2 here: half a key more in scores and in values, of 2 H E FLOPs a layer, three times.
    assert causal.total == int(row["half"]) + 3 * arch.n_layer * 2 * arch.n_embd


@pytest.mark.parametrize("row", [r for r in REFERENCE if r["six_n"]], ids=lambda row: row["id"])
def test_parameters_give_the_published_6n(row: dict[str, str]):
    """Catches: a parameter count that is wrong at published sizes, where 6N + 12LHET is published."""
    learned = {"position_encoding": "learned_absolute"} if row["learned_position"] == "1" else {}
    biases = {"bias": False, "normalization": "layernorm_nobias"} if row["n_counts"] == "less_position" else {}
    arch = of_row(row, **learned, **biases)
    groups = parameter_count(arch)
    left_out = {"all": 0, "less_position": groups["position"], "less_embedding": groups["embedding"]}
    parameters = groups["total"] - left_out[row["n_counts"]]
    assert 6 * parameters + 12 * arch.n_layer * arch.n_embd * arch.block_size == int(row["six_n"])


@pytest.mark.parametrize("row", [r for r in REFERENCE if r["published_with"]], ids=lambda row: row["id"])
def test_published_speeds(row: dict[str, str]):
    """Catches: FLOPs that disagree with a published TFLOP/s or MFU at the published tokens per second of one GPU."""
    arch = of_row(row)
    flops = flops_per_token(arch)
    a_token = {
        "full": flops.total,
        "half": flops.total - 3 * (flops.components()["scores"] + flops.components()["values"]) // 2,
        "six_n": int(row["six_n"] or 0),
    }[row["published_with"]]
    tflops = a_token * float(row["tokens_per_second"]) / 1e12
    if row["tflops"]:
        assert tflops == pytest.approx(float(row["tflops"]), abs=float(row["tolerance"]))
    else:
        mfu = 100 * tflops / float(row["peak_tflops"])
        assert mfu == pytest.approx(float(row["mfu"]), abs=float(row["tolerance"]))


def test_causal_is_the_mean_of_the_spans():
    """Catches: T/2 for (T + 1)/2, or a rounding of the half at even T."""
    arch = preset("llama", **SMALL)
    for seq_len in (1, 2, 5, 6):
        flops = flops_per_token(arch, seq_len, attention="causal")
        by_hand = sum(2 * arch.n_embd * (place + 1) for place in range(seq_len)) * arch.n_layer
        assert seq_len * flops.components()["scores"] == seq_len * flops.components()["values"] == by_hand
        full = flops_per_token(arch, seq_len)
        assert all(flops.components()[name] == full.components()[name] for name in ("q", "ffn_up", "head"))


def test_parts_add_up():
    """Catches: a component that is left out of a sum, and a wrong attention / FFN ratio (GPT-2 124M: 0.8333)."""
    flops = flops_per_token(preset("openai_gpt2", vocab_size=50257))
    assert tuple(flops.components()) == COMPONENTS
    assert flops.forward == flops.attention + flops.ffn + flops.groups["head"] == sum(flops.components().values())
    assert flops.attention_ffn_ratio == pytest.approx(7_864_320 / 9_437_184)
    assert flops.ffn == flops_per_token(preset("llama")).ffn  # three matrices at 8/3 cost what two cost at 4
    assert flops.components()["ffn_gate"] == 0


def test_parameters_of_all_programs_equal_the_built_model():
    """Catches: a bias, a norm or a table that is counted and not there, or there and not counted."""
    for arch in programs(**SMALL | {"n_layer": 2}):
        if arch.attention_backend == "manual" or arch.dropout:
            continue
        with torch.device("meta"):
            model = Transformer(arch)
        there = dict.fromkeys(("embedding", "position", "attention", "ffn", "norm", "head"), 0)
        for name, weight in model.named_parameters():
            inner = name.split(".")[2:3] or [""]
            group = name.split(".")[0] if not name.startswith("blocks") else inner[0]
            group = {"feed_forward": "ffn", "attention_norm": "norm", "feed_forward_norm": "norm"}.get(group, group)
            there[group] += weight.numel()
        assert parameter_count(arch) == there | {"total": sum(there.values())}, arch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_len": 0}, r"seq_len \(0\)"),
        ({"seq_len": 1.5}, r"seq_len \(1.5\)"),
        ({"attention": "causl"}, "Did you mean causal"),
    ],
    ids=str,
)
def test_mistakes_are_named(arguments: dict, message: str):
    """Catches: a figure of zero, or of another convention than asked for, instead of an error."""
    with pytest.raises(UserError, match=message):
        flops_per_token(preset("llama"), **arguments)


def test_any_architecture_equals_the_counter_and_the_built_model():
    """Catches: a level of any axis, also one that is new, whose declared costs are not those of what it builds."""
    for arch in random_architectures(300):
        for seq_len in (1, arch.block_size):
            assert counted(arch, seq_len, "cpu") == expected(arch, seq_len), arch
        with torch.device("meta"):
            assert sum(p.numel() for p in Transformer(arch).parameters()) == parameter_count(arch)["total"], arch
