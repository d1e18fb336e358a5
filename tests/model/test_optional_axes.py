"""The built-in axes beyond the nine, each against what it is defined as."""

import pytest
import torch
import torch.nn.functional as F

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.architecture import Architecture, preset
from raytrain.errors import UserError
from raytrain.model import Transformer, build
from raytrain.model.moe import load_imbalance
from raytrain.model.position import Rotary
from raytrain.model.window import windowed, windowed_manual

SMALL = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "d_ff": 24, "block_size": 12, "vocab_size": 13}


def randomised(arch: Architecture) -> Transformer:
    torch.manual_seed(0)
    model = build(arch)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def tokens(batch: int = 3) -> torch.Tensor:
    return torch.randint(13, (batch, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", [windowed, windowed_manual])
@pytest.mark.parametrize("window", [1, 3, 5, 12])
def test_a_window_is_a_mask(form, window):
    """Catches a window off by one, one that leaks across chunks, and padding that is attended to; its gradients too."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 13, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    place = torch.arange(13)
    near = (place[None] <= place[:, None]) & (place[None] > place[:, None] - window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
    found = form(q, k, v, window, 0.0)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    pairs = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found, expected))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_layer_of_the_pattern_sees_its_window_alone():
    """Catches a pattern that begins at another layer, or one that all layers share."""
    model = randomised(preset("llama", **SMALL, attention_window=(3, "full"))).eval()
    assert [block.attention.window for block in model.blocks] == [3, None]
    before = tokens(1)
    after = before.clone()
    after[0, 0] = (before[0, 0] + 1) % 13
    first = model.blocks[0]
    with torch.no_grad():
        x, y = (first(model.embedding(t), {})[0] for t in (before, after))
        assert not torch.equal(x[0, 2], y[0, 2])
        assert torch.equal(x[0, 3:], y[0, 3:])  # the first token is out of their window
        assert not torch.equal(model(before)[0, -1], model(after)[0, -1])  # the second layer sees all


def test_a_layer_without_positions_is_one():
    """Catches a nope layer that still turns its queries, and one that turns off the others."""
    turned = randomised(preset("llama", **SMALL, attention_window=("nope", "full"))).eval()
    plain = randomised(preset("llama", **SMALL, position_encoding="none")).eval()
    x = torch.randn(2, 12, 32)
    with torch.no_grad():
        for layer, same in ((0, True), (1, False)):
            found, expected = (model.blocks[layer].attention(x, {}) for model in (turned, plain))
            assert torch.equal(found, expected) is same


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ({"attention_window": (12,)}, {}),
        ({"attention_window": (4, 4)}, {"attention_window": (4,)}),
        ({"attention_window": (4, "full", 5)}, {"attention_window": (4, "full")}),  # there are two layers
        ({"attention_window": ("nope",), "position_encoding": "none"}, {"position_encoding": "none"}),
        ({"rope_theta": 5.0, "position_encoding": "none"}, {"position_encoding": "none"}),
        ({"rms_norm_eps": 1e-5, "normalization": "layernorm"}, {"normalization": "layernorm"}),
        ({"n_expert": 4}, {}),
    ],
)
def test_spellings_of_one_variant_have_one_hash(spelled, meant):
    """Catches two trials of one variant, and an axis that counts where it has no effect."""
    assert preset("llama", **SMALL, **spelled).hash == preset("llama", **SMALL, **meant).hash


@pytest.mark.parametrize(
    "axis",
    [
        {"qk_norm": True},
        {"attention_window": (4,)},
        {"attention_gate": "head"},
        {"value_embeddings": True},
        {"parallel_block": True},
        {"logit_softcap": 5.0},
        {"rope_fraction": 0.5},
        {"rope_theta": 100.0},
        {"rms_norm_eps": 1e-3},
        {"norm_position": "sandwich"},
        {"ffn_type": "moe"},
    ],
    ids=str,
)
def test_each_axis_changes_the_model(axis):
    """Catches an axis that is listed, named and counted, but never acts."""
    changed, plain = preset("llama", **SMALL, **axis), preset("llama", **SMALL)
    assert changed.hash != plain.hash
    model, other = (randomised(arch).eval() for arch in (changed, plain))
    shared = {k: v for k, v in other.state_dict().items() if k in model.state_dict()}
    if "ffn_type" not in axis:
        model.load_state_dict(shared, strict=False)
    with torch.no_grad():
        assert not torch.allclose(model(tokens()), other(tokens()), atol=1e-4)


def test_gate_sandwich_and_parallel_are_their_formulas():
    """Catches a gate after the projection, a norm outside of its branch, and a parallel FFN that sees attention."""
    x = torch.randn(2, 12, 32)
    with torch.no_grad():
        sandwich = randomised(preset("llama", **SMALL, norm_position="sandwich")).blocks[0]
        y = x + sandwich.join_attention.after(sandwich.attention(sandwich.attention_norm(x), {}))
        y = y + sandwich.join_feed_forward.after(sandwich.feed_forward(sandwich.feed_forward_norm(y), {}))
        torch.testing.assert_close(sandwich(x, {})[0], y)

        parallel = randomised(preset("llama", **SMALL, parallel_block=True)).blocks[0]
        normed = parallel.attention_norm(x)
        y = x + parallel.attention(normed, {}) + parallel.feed_forward(normed, {})
        torch.testing.assert_close(parallel(x, {})[0], y)

        gated = randomised(preset("llama", **SMALL, attention_gate="head")).blocks[0].attention
        hook, gated.output = gated.hooks[0], torch.nn.Identity()
        gate = (x @ hook.gate.weight.T).sigmoid().repeat_interleave(8, dim=-1)
        with_gate, gated.hooks = gated(x, {}), ()
        torch.testing.assert_close(with_gate, gate * gated(x, {}))


def test_value_embeddings_are_added_to_values_alone():
    """Catches a table that is looked up by place, or one that leaks into queries and keys."""
    arch = preset("llama", **SMALL, value_embeddings=True)
    model = randomised(arch)
    (hook,), carry = model.hooks, {}
    hook.embedded(model.embedding(tokens()), tokens(), carry)
    v = torch.randn(3, 12, 2, 8)
    weight = model.blocks[1].hooks[0]
    expected = v + weight.weight * hook.table.weight[tokens()].view(3, 12, 2, 8)
    torch.testing.assert_close(weight.values(v, carry), expected)
    assert parameter_count(arch)["total"] - parameter_count(preset("llama", **SMALL))["total"] == 13 * 16 + 2


def test_part_of_a_head_is_turned_as_a_smaller_one():
    """Catches frequencies that follow from the whole width, and features beyond the part that are turned too."""
    half = Rotary(preset("llama", **SMALL, rope_fraction=0.5))
    small = Rotary(preset("llama", **SMALL | {"n_embd": 16}))
    x = torch.randn(2, 12, 6, 8)
    turned = half.rotate(x)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4], small.rotate(x[..., :4].contiguous()))


@pytest.mark.parametrize("active", [1, 2, 4])
@pytest.mark.parametrize("shared", [0, 2])
def test_experts_equal_a_loop_over_experts(active, shared):
    """Catches a token that goes to another's expert, one that is dropped, and weights in another order."""
    sizes = {"n_expert": 4, "n_expert_active": active, "n_shared_expert": shared}
    experts = randomised(preset("llama", **SMALL, ffn_type="moe", **sizes)).blocks[0].feed_forward.double().eval()
    x = torch.randn(3, 12, 32, dtype=torch.float64, requires_grad=True)

    def one(expert: int, token: torch.Tensor) -> torch.Tensor:
        gate, up = (token @ experts.gate_up[expert]).chunk(2)
        return (F.silu(gate) * up) @ experts.down[expert]

    rows = []
    for token in x.flatten(0, 1):
        scores = experts.router.weight @ token
        best = scores.topk(active)
        shares = best.values.softmax(0) if active > 1 else scores.softmax(0)[best.indices]
        rows.append(sum(s * one(int(e), token) for s, e in zip(shares, best.indices, strict=True)))
    expected = torch.stack(rows).view_as(x)
    if shared:
        expected = expected + experts.shared(x, {})
    found = experts(x, {})
    torch.testing.assert_close(found, expected)
    parameters = [x, *(p for n, p in experts.named_parameters() if not n.startswith("shared"))]
    pairs = (torch.autograd.grad(out.square().sum(), parameters, retain_graph=True) for out in (found, expected))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_balance_of_experts():
    """Catches a loss that is not 1 for even experts, or that depends on how a batch is split over ranks."""
    even = torch.arange(8).view(1, 4, 2) % 4
    assert load_imbalance(torch.zeros(1, 4, 4), even).item() == pytest.approx(1.0)
    one = torch.full((1, 4, 1), 10.0) * F.one_hot(torch.zeros(1, 4, dtype=torch.long), 4)
    assert load_imbalance(one, torch.zeros(1, 4, 1, dtype=torch.long)).item() == pytest.approx(4.0, rel=1e-3)
    scores, chosen = torch.randn(6, 5, 4), torch.randint(4, (6, 5, 2))
    halves = [load_imbalance(scores[half], chosen[half]) for half in (slice(3), slice(3, 6))]
    assert load_imbalance(scores, chosen).item() == pytest.approx(float(sum(halves)) / 2)


def test_only_active_experts_are_model_flops():
    """Catches FLOPs of all experts, which would call a mixture as dear as its parameters."""
    few, many = (preset("llama", **SMALL, ffn_type="moe", n_expert=n).replace(d_ff=24) for n in (4, 16))
    router = 2 * 2 * 32 * 12  # two layers, twelve more scores
    assert flops_per_token(many).forward - flops_per_token(few).forward == router
    assert parameter_count(many)["ffn"] - parameter_count(few)["ffn"] == 2 * 12 * (3 * 32 * 24 + 32)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_window": (64,)}, r"attention_window \(64\) must be at most block_size \(12\)"),
        ({"attention_window": (0,)}, r"attention_window \(\(0,\)\) must be a list"),
        ({"attention_window": []}, r"attention_window \(\[\]\) must be a list"),
        ({"ffn_type": "moe", "n_expert": 2, "n_expert_active": 3}, r"n_expert_active \(3\) must be at most n_expert"),
        ({"n_expert": 0}, r"n_expert \(0\) must be a whole number, 1 or more"),
        ({"rope_fraction": 1.5}, r"rope_fraction \(1.5\) must be a number, 0 to 1"),
        ({"rope_fraction": 0.4}, r"rope_fraction \(0.4\) must turn an even part of the head width \(8\); try 0.5"),
        ({"logit_softcap": -1}, r"logit_softcap \(-1\) must be a number, 0 or more"),
        ({"attention_gate": "haed"}, "Unknown attention gate: 'haed'. Available: none, head. Did you mean head"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(changes, named):
    """Catches a combination that fails in a lane, as a shape, long after the sweep was planned."""
    with pytest.raises(UserError, match=named):
        preset("llama", **SMALL, **changes)
