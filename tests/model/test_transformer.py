"""The whole model: every combination of the axes, causality, tying, devices, compilation, parameters."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from raytrain.architecture import Architecture, preset
from raytrain.axes import AXES, RUN_AXES, load
from raytrain.model import Transformer, build, init_weights
from raytrain.sweep.space import load_space
from tests.levels import levels, random_architectures

SMALL = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16, "d_ff": 24, "block_size": 8, "vocab_size": 13}
NINE = load_space("full").levels | {"activation": (*load_space("full").levels["activation"], "gelu_tanh")}


def all_programs() -> list[Architecture]:
    points = (
        Architecture(**dict(zip(NINE, point, strict=True)), **SMALL) for point in itertools.product(*NINE.values())
    )
    return list(dict.fromkeys(point.program() for point in points))


def tokens(batch: int = 2, seq_len: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(SMALL["vocab_size"], (batch, seq_len), generator=torch.Generator().manual_seed(seed))


def randomised(arch: Architecture, seed: int = 0) -> Transformer:
    """A model in evaluation with large weights everywhere, so that no part of it is near the identity."""
    torch.manual_seed(seed)
    model = build(arch).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_every_level_is_built_of_something_that_exists():
    """Catches: a level whose declaration names a module or a class that is not there."""
    for axis in (*AXES.values(), *RUN_AXES.values()):
        for level in axis.levels.values():
            for target in filter(None, (level.make, level.layer_hook, level.model_hook)):
                assert callable(load(target)), (axis.name, level.value)


def test_every_program_trains():
    """Catches: a combination that does not build, gives a wrong shape, a NaN, or a weight that gets no gradient."""
    every = all_programs()
    assert len(every) == 1440 + 1440 // 5  # the full space, and gelu_tanh as a sixth way to fill the FFN
    for arch in every + random_architectures(300, seed=1):
        inputs, targets = (torch.randint(arch.vocab_size, (2, arch.block_size)) for _ in range(2))
        model = build(arch)
        logits = model(inputs)
        assert logits.shape == (2, arch.block_size, arch.vocab_size), arch
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        assert loss.isfinite(), arch
        assert abs(loss.item() - math.log(arch.vocab_size)) < 1.0, arch  # at the start it knows nothing
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (name, arch)
            assert parameter.grad.isfinite().all(), (name, arch)


@pytest.mark.parametrize("n_kv_head", [4, 1])
@pytest.mark.parametrize("backend", levels("attention_backend"))
@pytest.mark.parametrize("norm_position", levels("norm_position"))
@pytest.mark.parametrize("position", levels("position_encoding"))
def test_no_place_sees_a_later_one(position: str, norm_position: str, backend: str, n_kv_head: int):
    """Catches: a mask that is missing, transposed or off by one."""
    axes = {"position_encoding": position, "norm_position": norm_position, "attention_backend": backend}
    model = randomised(preset("llama", **SMALL | {"n_kv_head": n_kv_head}, **axes))
    before = tokens()
    for place in range(8):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % 13
        change = (model(after) - model(before)).abs().amax(dim=(0, 2))
        assert change[:place].eq(0).all()
        assert change[place:].gt(1e-4).all()


def test_forward_is_the_head_of_hidden():
    """Catches: a final norm that a fused head loss would miss, or that post-norm has too many of."""
    for name, final_norm in (("llama", True), ("gpt2", False)):
        model = randomised(preset(name, **SMALL))
        hidden = model.hidden(tokens())
        assert hidden.shape == (2, 8, 16)
        torch.testing.assert_close(model(tokens()), hidden @ model.head.weight.T)
        assert any(parameter.startswith("norm.") for parameter in dict(model.named_parameters())) == final_norm


def test_sequences_up_to_block_size():
    """Catches: a model bound to one length, or one that runs over its position table without a word."""
    for name in ("llama", "openai_gpt2"):
        model = randomised(preset(name, **SMALL))
        torch.testing.assert_close(model(tokens()[:, :3]), model(tokens())[:, :3])
        assert model(tokens(seq_len=1)).shape == (2, 1, 13)
    for position in levels("position_encoding"):
        with pytest.raises(ValueError, match=r"\(9\) is above block_size \(8\)"):
            build(preset("llama", **SMALL, position_encoding=position))(tokens(seq_len=9))


def test_tied_weights_are_one_through_meta():
    """Catches: `to_empty` parting the head from the embedding, which then train apart."""
    for tied in (True, False):
        with torch.device("meta"):
            model = build(preset("llama", **SMALL, weight_tying=tied))
        assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        model.to_empty(device="cpu")
        init_weights(model)
        assert (model.head.weight is model.embedding.weight) == tied
        assert ("head.weight" in dict(model.named_parameters())) != tied


def test_dropout_acts_at_all_its_places_and_in_training_alone():
    """Catches: a place of GPT-2's dropout left out, or dropout at evaluation."""
    for backend in levels("attention_backend"):
        model = randomised(preset("openai_gpt2", **SMALL, dropout=0.5, attention_backend=backend))
        plain = build(preset("openai_gpt2", **SMALL))
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(tokens()), plain.eval()(tokens()), rtol=0, atol=1e-5)

        block = model.train().blocks[0]
        x = torch.randn(1, 4, 16)
        for part in (model.dropout, block.dropout):
            assert part(x).eq(0).any()
        assert not torch.equal(block.attention(x, {}), block.attention(x, {}))  # on the attention probabilities
        assert torch.equal(block.feed_forward(x, {}), block.feed_forward(x, {}))


@pytest.mark.parametrize("backend", levels("attention_backend"))
@pytest.mark.parametrize("name", ["gpt2", "llama", "openai_gpt2"])
def test_total_dropout_is_finite(name: str, backend: str):
    """Catches: 0 / 0 where everything is dropped, in logits or in gradients."""
    model = build(preset(name, **SMALL, dropout=1.0, attention_backend=backend))
    logits = model(tokens())
    assert logits.eq(0).all()
    F.cross_entropy(logits.flatten(0, 1), tokens(seed=2).flatten()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    x = torch.randn(1, 4, 16)
    if model.arch.norm_position == "pre":
        assert torch.equal(model.blocks[0](x, {})[0], x)  # both branches are dropped, and the residual stream stays


def test_a_copy_stands_alone():
    """Catches: layers of a copied model that still use the position tables of the first."""
    model = randomised(preset("llama", **SMALL))
    twin = copy.deepcopy(model)
    expected = model(tokens())
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(float("nan"))
    assert torch.equal(twin(tokens()), expected)


@pytest.mark.parametrize(
    ("name", "backend"), [("llama", "sdpa"), ("gpt2", "manual"), ("openai_gpt2", "sdpa")], ids=lambda v: v
)
def test_compiles_as_one_graph(name: str, backend: str):
    """Catches: a graph break, which costs the speed that compiling is for; and a compiled model that differs."""
    torch.compiler.reset()
    model = randomised(preset(name, **SMALL, attention_backend=backend, dropout=0.1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens()), model(tokens()))
    compiled(tokens()).sum().backward()


def test_compiled_blocks_share_one_graph():
    """Catches: per-block compilation that compiles again for every layer."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    model = build(preset("llama", **SMALL | {"n_layer": 4}))
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    model(tokens())
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", levels("attention_backend"))
@pytest.mark.parametrize("name", ["gpt2", "llama", "openai_gpt2"])
def test_autocast_stays_near_float32(name: str, backend: str):
    """Catches: a part that leaves the compute dtype, mixes dtypes, or loses more than bf16's own rounding."""
    model = randomised(preset(name, **SMALL, attention_backend=backend))
    exact = model(tokens())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens())
        assert model.hidden(tokens()).dtype == torch.bfloat16  # the residual stream
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_published_parameter_counts():
    """Catches: a bias, norm or table too many or too few, at the sizes whose counts are known."""
    with torch.device("meta"):
        gpt2 = build(preset("openai_gpt2", vocab_size=50257))
        llama = build(preset("llama", vocab_size=32000, n_kv_head=4))
    assert sum(p.numel() for p in gpt2.parameters()) == 124_439_808
    assert sum(p.numel() for p in llama.parameters()) == 124_668_672
