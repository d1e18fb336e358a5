"""Muon against the singular value decomposition, and what it leaves to AdamW."""

import pytest
import torch

from raytrain.model import build
from raytrain.training import muon as muon_module
from raytrain.training import optimizer, parallel
from raytrain.training.muon import SINGULAR_VALUES, muon, orthogonalize
from raytrain.training.objective import NextTokenLoss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 96), (3, 24, 40)], ids=str)
def test_singular_values_are_brought_near_one(shape, dtype):
    """Catches an iteration that diverges in bf16, turns the singular vectors, or mixes the matrices of a stack."""
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, dtype).float()
    singular = torch.linalg.svdvals(found)
    assert SINGULAR_VALUES[0] < singular.min()
    assert singular.max() < SINGULAR_VALUES[1]
    inside = u.mT @ found @ vt.mT  # diagonal, if it has the same singular vectors
    off = inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 0.05
    assert inside.diagonal(dim1=-2, dim2=-1).min() > SINGULAR_VALUES[0] - 0.05


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-6), (torch.float32, 1e-5)])
def test_a_stack_is_each_of_its_matrices(dtype, tolerance):
    """Catches a norm or a product over the whole stack."""
    torch.manual_seed(0)
    stack = torch.randn(2, 3, 24, 40) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    each = torch.stack([orthogonalize(matrix, dtype) for matrix in stack.flatten(0, 1)]).view_as(stack)
    torch.testing.assert_close(orthogonalize(stack, dtype), each, rtol=0, atol=tolerance)


def test_steps_in_stacks_are_those_of_single_matrices(tiny_run, monkeypatch):
    """Catches a matrix that gets another's step, where those of one shape are stacked."""
    config = tiny_run(preset="llama", optimizer="muon", ffn_type="moe", n_layer=3)
    world = parallel.World(0, 1, torch.device("cpu"), "single", torch.float32)
    after = []
    for stacked in (2**25, 1, 2 * 32 * 32):  # all of a shape, one, and two of the smallest
        monkeypatch.setattr(muon_module, "STACKED", stacked)
        torch.manual_seed(0)
        model = NextTokenLoss(build(config.architecture))
        made = optimizer.make_optimizer(model, config, world)
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            made.step()
        after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(after[0], after[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after[2], after[1], rtol=1e-5, atol=1e-6)


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(tiny_run):
    """Catches vectors, embeddings or the head in Muon, and a parameter that nobody updates."""
    config = tiny_run(preset="llama", optimizer="muon", qk_norm=True, ffn_type="moe")
    model = NextTokenLoss(build(config.architecture))
    world = parallel.World(0, 1, torch.device("cpu"), "single", torch.float32)
    made = optimizer.make_optimizer(model, config, world)
    taken = {id(p) for group in made.param_groups if group["orthogonal"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    expected = {"attention.qkv.weight", "attention.output.weight"}
    expected |= {f"feed_forward.{name}" for name in ("router.weight", "gate_up", "down")}
    assert names == {f"model.blocks.{layer}.{name}" for layer in range(2) for name in expected}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    made.step()
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_step_is_as_long_as_adamws(tiny_run):
    """Catches a scale that is lost: one learning rate is to suit both."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    config = tiny_run(preset="llama", learning_rate=1.0, weight_decay=0.0)
    choice = muon([("blocks.0.weight", weight)], config)
    weight.grad = torch.randn_like(weight)
    choice.kind(choice.groups, **choice.options).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)
