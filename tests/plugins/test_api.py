"""Components from outside the package: a class and one line, and all that raytrain knows of a level holds for it."""

import math

import pytest
import torch
from torch import Tensor, nn

from raytrain import plugins
from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.architecture import Architecture, preset
from raytrain.errors import UserError
from raytrain.model import build
from raytrain.model.hooks import Carry, LayerHook, add_loss
from raytrain.training.loop import train
from tests.accounting.test_flops import counted

SMALL = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16, "d_ff": 24, "block_size": 8, "vocab_size": 13}


class ScaleAndShift(nn.Module):
    """A norm that only scales and shifts what it is given, by one number each, bounded by tanh."""

    def __init__(self, width: int, arch: Architecture) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.shift = nn.Parameter(torch.empty(width))
        self.slope = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.slope * x) + self.shift


class WithReset(ScaleAndShift):
    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)
        nn.init.constant_(self.slope, 0.5)


@pytest.mark.usefixtures("registry")
def test_a_norm_by_its_class_alone(tiny_run):
    """Catches: a component whose parameters are miscounted, whose FLOPs are another's, or that does not learn."""
    plugins.norm("bounded", part="Bounded")(WithReset)
    arch = preset("llama", **SMALL, normalization="bounded")
    assert arch.name == "2L-4H-16D-RoPE-Bounded-SwiGLU-PreNorm"
    assert arch.hash not in {preset("llama", **SMALL, normalization=n).hash for n in ("rmsnorm", "layernorm")}
    assert parameter_count(arch)["norm"] == 5 * (16 + 16 + 1)  # two in each of two layers, and the last
    assert parameter_count(arch)["total"] == sum(p.numel() for p in build(arch).parameters())
    flops = flops_per_token(arch)
    assert (8 * flops.forward, flops.per_sequence) == counted(arch, 8, "meta")

    losses = []
    config = tiny_run(preset="llama", normalization="bounded", max_iters=20, learning_rate=1e-2)
    result = train(config, lambda report: losses.append(report["loss"]) if report["event"] == "step" else None)
    assert (result["status"], len(losses)) == ("complete", 20)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.usefixtures("registry")
def test_a_module_that_does_not_set_its_parameters_is_one_clear_error(tiny_run):
    """Catches: training on uninitialised memory, which reports "diverged" as if it were a finding."""
    plugins.norm("unset")(ScaleAndShift)
    with pytest.raises(UserError) as raised:
        train(tiny_run(preset="llama", normalization="unset"))
    assert str(raised.value).startswith("ScaleAndShift does not set its scale (blocks.0.attention_norm.scale): ")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("registry")
def test_a_half_set_buffer_is_an_error_too():
    """Catches: a check of parameters alone, of floats alone, or of whole tensors alone."""

    class Half(WithReset):
        def __init__(self, width: int, arch: Architecture) -> None:
            super().__init__(width, arch)
            self.register_buffer("places", torch.empty(width, dtype=torch.int64))

        def reset_parameters(self) -> None:
            super().reset_parameters()
            self.places[1:] = 0

    plugins.norm("half")(Half)
    with pytest.raises(UserError, match=r"Half does not set its places \(blocks.0.attention_norm.places\)"):
        build(preset("llama", **SMALL, normalization="half"))


@pytest.mark.usefixtures("registry")
def test_a_module_may_set_what_its_submodules_have():
    """Catches: a submodule's own reset that runs later and undoes its holder's."""

    @plugins.ffn("zero", dead={"activation": "gelu"})
    class Zero(nn.Module):
        def __init__(self, arch: Architecture) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(arch.n_embd, 7), nn.Linear(7, arch.n_embd)

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.down.weight)

        def forward(self, x_BTD: Tensor, carry: Carry) -> Tensor:
            return self.down(self.up(x_BTD))

    arch = preset("llama", **SMALL, ffn_type="zero")
    model = build(arch)
    assert model.blocks[1].feed_forward.down.weight.eq(0).all()
    assert model.blocks[1].feed_forward.up.weight.ne(0).any()
    assert arch.hash == arch.replace(activation="relu").hash
    assert parameter_count(arch)["ffn"] == 2 * (17 * 7 + 8 * 16)
    for size in ({}, {"n_layer": 3, "n_embd": 24, "block_size": 5}):
        arch = preset("llama", **SMALL | size, ffn_type="zero")
        assert flops_per_token(arch).forward * arch.block_size == counted(arch, arch.block_size, "meta")[0]


@pytest.mark.usefixtures("registry")
def test_an_axis_of_its_own():
    """Catches: an axis that changes the hashes of models that do not use it, that acts when it is off, or whose
    parameters and FLOPs are not counted; a loss term that is reported, or trained on by none."""
    before = preset("llama", **SMALL)
    expected = before.hash, before.name, before.to_dict()

    class Mixed(LayerHook):
        def __init__(self, arch: Architecture, layer: int) -> None:
            super().__init__(arch, layer)
            self.is_first = layer == 0
            self.mix = nn.Linear(arch.head_dim, arch.head_dim, bias=False)

        def values(self, v_BTKE: Tensor, carry: Carry) -> Tensor:
            if self.is_first:
                carry["first"] = v_BTKE
            add_loss(carry, self.mix.weight.square().sum())
            return self.mix(v_BTKE) + carry["first"]

    plugins.axis("mixing", off="off", levels=[plugins.option("mixing", "on", layer_hook=Mixed)])
    plain, mixed = preset("llama", **SMALL), preset("llama", **SMALL, mixing="on")
    assert (plain.hash, plain.name, plain.to_dict()) == expected
    assert mixed.hash != plain.hash
    assert mixed.name == f"{plain.name}-mixing=on"
    assert mixed.value("mixing") == "on"
    assert plain.value("mixing") == "off"
    assert mixed.replace(mixing="off") == plain
    assert parameter_count(mixed)["mixing"] == 2 * 4 * 4
    flops = flops_per_token(mixed)
    assert (8 * flops.forward, flops.per_sequence) == counted(mixed, 8, "meta")
    assert flops.groups["mixing"] == 2 * 2 * 2 * 4 * 4  # layers x (2 a multiply-add) x kv heads x E x E

    from raytrain.training.objective import NextTokenLoss

    torch.manual_seed(0)
    loss_model = NextTokenLoss(build(mixed))
    tokens = torch.randint(13, (2, 8))
    trained = loss_model(tokens, tokens)
    evaluated = loss_model.eval()(tokens, tokens)
    assert trained.item() == evaluated.item()
    weight = loss_model.model.blocks[1].attention.hooks[0].mix.weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (trained, evaluated)]
    torch.testing.assert_close(gradients[0] - gradients[1], 2 * 16 * weight.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("registry")
def test_an_activation_with_parameters():
    """Catches: an activation's parameters that are not counted, or made of another width."""

    @plugins.activation("prelu", part="PReLU")
    class Leak(nn.Module):
        def __init__(self, width: int, arch: Architecture) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.empty(width))

        def reset_parameters(self) -> None:
            nn.init.constant_(self.slope, 0.25)

        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(min=0) + self.slope * x.clamp(max=0)

    arch = preset("gpt2", **SMALL, activation="prelu")
    assert "PReLU" in arch.name
    assert parameter_count(arch)["total"] == sum(p.numel() for p in build(arch).parameters())
    assert parameter_count(arch)["activation"] == 2 * 24


@pytest.mark.usefixtures("registry")
def test_a_schedule_and_an_optimizer(tiny_run):
    """Catches: a registered schedule or optimizer that is not used, or whose name a run refuses."""
    from raytrain.training.optimizer import OptimizerChoice, decay_groups, learning_rate, make_optimizer
    from raytrain.training.parallel import World

    @plugins.schedule("sqrt")
    def sqrt(config, step, warmup):
        return 1 - math.sqrt(step / config.total_steps)

    @plugins.optimizer("sgd")
    def sgd(parameters, config):
        return OptimizerChoice(torch.optim.SGD, decay_groups(parameters, config), {"lr": config.learning_rate})

    config = tiny_run(preset="llama", schedule="sqrt", optimizer="sgd", warmup_fraction=0.0, learning_rate=2.0)
    assert learning_rate(config, 5) == 2.0 * (1 - math.sqrt(5 / 20))
    world = World(0, 1, torch.device("cpu"), "single", torch.float32)
    assert isinstance(make_optimizer(build(config.architecture), config, world), torch.optim.SGD)
    with pytest.raises(UserError, match=r"Unknown optimizer: 'sdg'.*sgd. Did you mean sgd"):
        tiny_run(preset="llama", optimizer="sdg")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda: plugins.norm("rmsnorm")(WithReset), "normalization 'rmsnorm' is taken"),
        (lambda: plugins.level("normalisation", "x")(WithReset), "Unknown axis: 'normalisation'.*Did you mean norm"),
        (lambda: plugins.level("dropout", 0.3)(WithReset), "axis 'dropout' takes any float"),
        (lambda: plugins.axis("bias", off=0, levels=[plugins.option("bias", 1)]), "axis 'bias' is taken"),
        (lambda: plugins.axis("mine", off=0, levels=[plugins.option("mine", "a")]), "must be of one type"),
        (lambda: plugins.axis("mine", off=0), "axis 'mine' needs two levels or more"),
    ],
    ids=range(6),
)
def test_mistakes_are_named(add, message):
    """Catches: a plugin that silently replaces a built-in level, or registers what no run can name."""
    with pytest.raises(UserError, match=message):
        add()
