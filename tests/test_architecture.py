"""Architecture: names, presets, the canonical form, and errors that name the field, the value and what is allowed."""

import dataclasses
import itertools

import pytest

from raytrain import architecture
from raytrain.architecture import AXES, PRESETS, SCALES, Architecture, from_dict, from_json, from_yaml, preset
from raytrain.errors import UserError
from raytrain.sweep.space import load_space
from tests.levels import levels

FULL_SPACE = load_space("full").levels
CUSTOM = {axis: levels[0] for axis, levels in FULL_SPACE.items()}


def test_the_full_space_has_720_functions():
    """Catches: one variant trained twice, or two taken for one."""
    points = [Architecture(**dict(zip(FULL_SPACE, p, strict=True))) for p in itertools.product(*FULL_SPACE.values())]
    assert len(points) == len(set(points)) == 2304
    assert len({point.program() for point in points}) == 1440
    assert len({point.canonical() for point in points}) == len({point.hash for point in points}) == 720


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        (preset("gpt2"), "12L-12H-768D-AbsPos-LN-NB-GELU-PostNorm"),
        (preset("llama"), "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm"),
        (preset("team"), "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm"),
        (preset("hybrid"), "12L-12H-768D-RoPE-LN-NB-GELU-PreNorm"),
        (preset("openai_gpt2"), "12L-12H-768D-AbsPos-LN-GELU_TANH-PreNorm"),
        (preset("gpt2", normalization="rmsnorm"), "12L-12H-768D-AbsPos-RMS-GELU-PostNorm"),
        (
            preset("gpt2", activation="leaky_relu", position_encoding="none", n_layer=4, n_head=2, n_embd=64),
            "4L-2H-64D-NoPos-LN-NB-LEAKY_RELU-PostNorm",
        ),
        (preset("llama", activation="relu"), "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names(arch: Architecture, name: str):
    """Catches: a name part that differs from the predecessor's, which its users search for."""
    assert arch.name == name


def test_presets_are_as_specified():
    """Catches: a preset whose other axes are not what its users expect; `custom` that presets something."""
    rest = {
        name: (arch.bias, arch.weight_tying, arch.dropout)
        for name in PRESETS
        if name != "custom"
        for arch in [preset(name)]
    }
    assert rest == {
        "gpt2": (False, True, 0.0),
        "llama": (False, False, 0.0),
        "team": (False, False, 0.0),
        "hybrid": (False, True, 0.0),
        "openai_gpt2": (True, True, 0.0),
        "modern": (False, False, 0.0),
    }
    assert preset("llama") == preset("team")
    assert preset("custom", **CUSTOM) == Architecture(**CUSTOM)
    with pytest.raises(UserError, match=r"all nine axes; missing: normalization, .*dropout"):
        preset("custom")
    assert set(architecture.PRESET_NOTES) == set(PRESETS)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "custom"])
@pytest.mark.parametrize("axis", AXES)
def test_any_axis_overrides_any_preset(name: str, axis: str):
    """Catches: an override that a preset silently ignores, as the predecessor did."""
    for level in levels(axis):
        changed = preset(name, **{axis: level})
        assert getattr(changed, axis) == level
        assert changed.replace(**{axis: getattr(preset(name), axis)}) == preset(name)


def test_widths():
    """Catches: an FFN width that is not 4 D or 8/3 D, or off the multiple of 64; a wrong head width."""
    assert preset("gpt2").ffn_width == 3072
    assert preset("llama").ffn_width == 2048
    assert preset("llama", n_embd=96, n_head=3).ffn_width == 256
    assert preset("llama", n_embd=100, n_head=2).ffn_width == 256  # from 266.7
    assert preset("llama", n_embd=16, n_head=4).ffn_width == 64
    assert preset("llama", d_ff=100).ffn_width == 100
    assert (preset("llama").kv_heads, preset("llama", n_kv_head=4).kv_heads, preset("llama").head_dim) == (12, 4, 64)


def test_what_the_hash_distinguishes():
    """Catches: two variants under one hash; one variant under two, by how its defaults were spelled."""
    base = preset("llama")
    assert base.hash == preset("llama", n_kv_head=12, d_ff=2048, activation="relu", attention_backend="manual").hash
    assert base.canonical() == base.canonical().canonical()
    others = [
        {"n_layer": 11},
        {"n_head": 6},
        {"n_kv_head": 4},
        {"d_ff": 2112},
        {"block_size": 512},
        {"vocab_size": 256},
        {"bias": True},
        {"weight_tying": True},
        {"dropout": 0.1},
    ]
    assert len({base.hash, *(base.replace(**change).hash for change in others)}) == 1 + len(others)
    assert base.program().attention_backend == "sdpa"
    assert base.replace(attention_backend="manual").program().attention_backend == "manual"


@pytest.mark.parametrize(
    "arch", [preset("gpt2"), preset("llama", n_kv_head=4, d_ff=100, dropout=0.25)], ids=["plain", "set"]
)
def test_round_trips(arch: Architecture):
    """Catches: a field that is lost or changes type on the way through a file."""
    assert from_dict(arch.to_dict()) == from_json(arch.to_json()) == from_yaml(arch.to_yaml()) == arch
    assert isinstance(preset("gpt2", dropout=0).dropout, float)


@pytest.mark.parametrize("scale", SCALES)
def test_scales_are_valid_for_every_preset(scale: str):
    """Catches: a scale whose width does not divide into its heads, or whose heads cannot turn."""
    for name in PRESETS:
        if name != "custom":
            assert preset(name, **SCALES[scale]).head_dim % 2 == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"normalization": "rmsnrm"},
            "Unknown norm type: 'rmsnrm'. Available: layernorm, layernorm_nobias, rmsnorm. Did you mean rmsnorm?",
        ),
        ({"ffn_type": "swigl"}, "Unknown FFN type: 'swigl'. Available: standard, swiglu, moe. Did you mean swiglu?"),
        ({"position_encoding": None}, "Unknown position encoding: None. Available: learned_absolute, rope, none."),
        ({"bias": "False"}, "bias ('False') must be True or False"),
        ({"weight_tying": 1}, "weight_tying (1) must be True or False"),
        ({"dropout": 1.5}, "dropout (1.5) must be a number from 0.0 to 1.0"),
        ({"dropout": float("nan")}, "dropout (nan) must be a number from 0.0 to 1.0"),
        ({"dropout": True}, "dropout (True) must be a number from 0.0 to 1.0"),
        ({"n_head": 10}, "n_embd (768) must be divisible by n_head (10); try 8 or 12"),
        ({"n_embd": 100}, "n_embd (100) must be divisible by n_head (12); try 10 or 20"),
        ({"n_kv_head": 5}, "n_head (12) must be divisible by n_kv_head (5); try 4 or 6"),
        ({"n_layer": 0}, "n_layer (0) must be a whole number of 1 or more"),
        ({"vocab_size": 1.5}, "vocab_size (1.5) must be a whole number of 1 or more"),
        ({"n_layr": 3}, "Unknown architecture field: 'n_layr'."),
        (
            {"n_embd": 36, "position_encoding": "rope"},
            "position_encoding 'rope' needs an even head width, but n_embd / n_head is 36 / 12 = 3",
        ),
    ],
    ids=str,
)
def test_mistakes_are_one_clear_line(changes: dict, message: str):
    """Catches: a mistake that passes, or that surfaces later as a traceback from elsewhere."""
    with pytest.raises(UserError) as raised:
        preset("gpt2", **changes)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_an_unknown_preset_is_named():
    """Catches: a KeyError for a misspelt preset."""
    with pytest.raises(UserError, match=r"Unknown preset: 'lama'.*Did you mean llama\?"):
        preset("lama")


def test_it_cannot_change():
    """Catches: a trial whose architecture changes under its hash."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("gpt2").bias = True  # type: ignore[misc]
