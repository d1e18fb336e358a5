"""Plugins from files: what a command refuses before anything starts, what a run records, and what a resume compares."""

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest

from raytrain import compare, export, generate, presets, train, tune
from raytrain.architecture import AXES, preset
from raytrain.axes import plugin
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.plugins import loader
from raytrain.rundir.folders import read_json
from raytrain.training import loop
from raytrain.training.plugin_check import check

pytestmark = pytest.mark.usefixtures("registry")

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = """
import torch
from torch import nn
from raytrain import plugins

class Base(nn.Module):
    def __init__(self, width, arch):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
    def reset_parameters(self):
        nn.init.ones_(self.weight)
    def forward(self, x):
        return self.weight * x
"""
SMALL = "--n_layer 2 --n_head 2 --n_embd 16 --block_size 32 --global_batch 128 --eval_tokens 256 --compile False"


def written(tmp_path: Path, body: str, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(HEAD + body)
    return str(path)


OPTIMIZER = """
from raytrain.training.optimizer import OptimizerChoice
@plugins.optimizer("odd")
def odd(parameters, config):
    return OptimizerChoice({kind}, [{{"params": {groups}}}], {{{options}}})
"""
SCHEDULE = """
@plugins.schedule("mine")
def mine(config, step, warmup):
    return {}
"""
MISTAKES = {
    "fails": ("\n1 / 0\n", "plugin mine.py, line 15: ZeroDivisionError: division by zero"),
    "syntax": ("\ndef f(:\n", "plugin mine.py, line 15: SyntaxError"),
    "exits": ("\nraise SystemExit(3)\n", "plugin mine.py, line 15: SystemExit: 3"),
    "taken": ('plugins.norm("rmsnorm")(Base)', "normalization 'rmsnorm' is taken"),
    "a field of a run": (
        'plugins.axis("seed", off=0, levels=[plugins.option("seed", 1)])',
        "axis 'seed' has the name of another flag",
    ),
    "parameters": (
        'plugins.norm("odd", parameters=lambda width: width + 1)(Base)',
        "plugin mine.py, normalization 'odd': it declares 6,605 parameters at n_embd 24, and the model has 6,600",
    ),
    "FLOPs": (
        """
@plugins.ffn("two", per_layer=lambda arch, span: [plugins.linear("ffn", "a", arch.n_embd, 2 * arch.n_embd)])
class Two(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.a, self.b = (nn.Linear(arch.n_embd, arch.n_embd, bias=False) for _ in range(2))
    def forward(self, x, carry):
        return self.b(self.a(x)) @ self.a.weight
""",
        "plugin mine.py, ffn_type 'two': it declares",
    ),
    "unset": (
        """
@plugins.norm("unset")
class Unset(Base):
    def reset_parameters(self):
        pass
""",
        "plugin mine.py, normalization 'unset': Unset does not set its weight (blocks.0.attention_norm.weight)",
    ),
    "unused": (
        """
@plugins.norm("unused")
class Unused(Base):
    def forward(self, x):
        return x
""",
        "plugin mine.py, normalization 'unused': its parameter blocks.0.attention_norm.weight gets no gradient",
    ),
    "nan": (
        """
@plugins.norm("nan")
class Nan(Base):
    def forward(self, x):
        return self.weight * x / 0
""",
        "plugin mine.py, normalization 'nan': the loss of a new model is nan",
    ),
    "gradient": (
        """
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient

@plugins.activation("twice")
def twice(x):
    return Twice.apply(x)
""",
        "plugin mine.py, activation 'twice': its gradient is wrong",
    ),
    "shape": (
        """
@plugins.activation("wide")
def wide(x):
    return torch.cat((x, x), -1)
""",
        "plugin mine.py, activation 'wide' does not run: RuntimeError",
    ),
    "loss term": (
        """
from raytrain.model.hooks import ModelHook
class PerToken(ModelHook):
    def loss(self, hidden, targets, head):
        return hidden.square().mean(-1)
plugins.axis("even", off=False, levels=[plugins.option("even", True, model_hook=PerToken)])
""",
        "plugin mine.py, even True: its loss term must be a finite scalar, in nats per token, and is tensor([[",
    ),
    "loss term fails": (
        """
from raytrain.model.hooks import ModelHook
class Failing(ModelHook):
    def loss(self, hidden, targets):
        return hidden.mean()
plugins.axis("even", off=False, levels=[plugins.option("even", True, model_hook=Failing)])
""",
        "plugin mine.py, even True does not run: TypeError",
    ),
    "optimizer raises": (
        """
@plugins.optimizer("odd")
def odd(parameters, config):
    return config.momentum
""",
        "plugin mine.py, line 17, optimizer 'odd' does not run: AttributeError: 'TrainConfig' object has no attribute",
    ),
    "optimizer's arguments": (
        """
@plugins.optimizer("odd")
def odd(model):
    return torch.optim.AdamW(model.parameters())
""",
        "plugin mine.py, optimizer 'odd' does not run: TypeError: odd() takes 1 positional argument but 2 were given",
    ),
    "optimizer's options": (
        OPTIMIZER.format(kind="torch.optim.AdamW", groups="[p for _, p in parameters]", options='"momentum": 0.9'),
        "plugin mine.py, optimizer 'odd' does not run: TypeError: AdamW.__init__() got an unexpected keyword argument",
    ),
    "no choice": (
        """
@plugins.optimizer("odd")
def odd(parameters, config):
    return torch.optim.AdamW([p for _, p in parameters])
""",
        "plugin mine.py, optimizer 'odd': it must return a training.optimizer.OptimizerChoice, and returns AdamW",
    ),
    "left out": (
        OPTIMIZER.format(
            kind="torch.optim.AdamW", groups="[p for n, p in parameters if 'norm' not in n]", options='"lr": 1.0'
        ),
        "plugin mine.py, optimizer 'odd': its groups leave out the parameter model.blocks.0.attention_norm.weight",
    ),
    "left as it was": (
        """
class Lazy(torch.optim.AdamW):
    def step(self, closure=None):
        self.param_groups[0]["params"][0].grad = None
        return super().step(closure)
"""
        + OPTIMIZER.format(kind="Lazy", groups="[p for _, p in parameters]", options='"lr": 1.0'),
        "plugin mine.py, optimizer 'odd': its steps leave model.embedding.weight as it was",
    ),
    "no state": (
        OPTIMIZER.format(kind="torch.optim.SGD", groups="[p for _, p in parameters]", options='"momentum": 0.9'),
        "plugin mine.py, optimizer 'odd': optimizer SGD cannot be kept in checkpoints: it needs initial_state",
    ),
    "state of its own": (
        """
class Momentum(torch.optim.SGD):
    def initial_state(self, parameter, group):
        return {"momentum": torch.zeros_like(parameter)}
"""
        + OPTIMIZER.format(kind="Momentum", groups="[p for _, p in parameters]", options='"momentum": 0.9'),
        "plugin mine.py, optimizer 'odd': its state after a step is {'momentum_buffer': (11, 24)}, and initial_state",
    ),
    "schedule": (SCHEDULE.format("(1 - step / config.total_steps) ** 0.5 * float('nan')"), "returns nan: it must be"),
    "schedule below zero": (
        SCHEDULE.format("1 - 2 * step / config.total_steps"),
        "plugin mine.py, schedule 'mine': at step 26 of 50 the schedule returns -0.04",
    ),
    "schedule of text": (SCHEDULE.format("'1.0'"), "at step 0 of 1 the schedule returns '1.0': it must be"),
    "schedule fails": (
        SCHEDULE.format("1 / (config.total_steps - step - 1)"),
        "plugin mine.py, line 17, schedule 'mine' does not run: ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_plugin_that_is_wrong_is_one_line_before_anything_starts(kind, tmp_path, capsys):
    """Catches: a traceback, a run that starts, or what a failed plugin registered that remains."""
    body, message = MISTAKES[kind]
    before = {axis: set(facts.levels) for axis, facts in AXES.items()}
    runs = tmp_path / "runs"
    assert train.main(["--plugin", written(tmp_path, body), "--max_iters", "1", "--runs", str(runs)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not runs.exists()
    if kind in ("fails", "taken"):
        assert {axis: set(facts.levels) for axis, facts in AXES.items()} == before


def test_a_gradient_that_is_meant_to_be_another_is_left(tmp_path):
    """Catches: a straight-through estimator that cannot be tried."""
    body = MISTAKES["gradient"][0].replace('"twice"', '"twice", is_slope=False')
    check(loader.load(written(tmp_path, body)))


def test_an_optimizer_a_schedule_and_a_loss_term_that_are_right(tmp_path):
    """Catches: a check that refuses what trains, such as state of an optimizer's own, or a loss term with a weight."""
    body = """
from raytrain.model.hooks import ModelHook
from raytrain.training.muon import muon
from raytrain.training.optimizer import OptimizerChoice, decay_groups

class Sign(torch.optim.SGD):
    def initial_state(self, parameter, group):
        return {"momentum_buffer": torch.zeros_like(parameter)}

plugins.optimizer("muon2")(muon)
plugins.optimizer("sign")(
    lambda parameters, config: OptimizerChoice(
        Sign, decay_groups(parameters, config), {"lr": config.learning_rate, "momentum": 0.9}
    )
)
plugins.schedule("constant")(lambda config, step, warmup: 1)

class Small(ModelHook):
    def __init__(self, arch):
        super().__init__(arch)
        self.scale = nn.Parameter(torch.empty(arch.n_embd))
    def reset_parameters(self):
        nn.init.ones_(self.scale)
    def loss(self, hidden, targets, head):
        return (self.scale * hidden).square().mean()
plugins.axis("small", off=False, levels=[plugins.option("small", True, model_hook=Small)])
"""
    check(loader.load(written(tmp_path, body)))


@pytest.mark.parametrize("example", ["dyt_norm", "value_residual"])
def test_the_examples_pass_their_check(example):
    """Catches: an example whose parameters, FLOPs or gradient are wrong."""
    check(loader.load(EXAMPLES / f"{example}.py"))


def test_an_axis_is_a_flag_and_a_record(tmp_path, capsys, monkeypatch):
    """Catches: a plugin's axis that no flag sets, that is not in the config, or that --help does not show."""
    monkeypatch.chdir(tmp_path)
    flags = ["--plugin", str(EXAMPLES / "value_residual.py"), *SMALL.split(), "--preset", "llama", "--max_iters", "4"]
    assert train.main([*flags, "--value_residual", "True", "--name", "on", "--checkpoint_interval", "2"]) == 0
    assert train.main([*flags, "--name", "off"]) == 0
    assert "value_residual" in capsys.readouterr().out
    on, off = (read_json(tmp_path / "runs" / name / "config.json") for name in ("on", "off"))
    assert on["architecture"]["value_residual"] is True
    assert [record["name"] for record in on["plugins"]] == ["value_residual.py"]
    assert "value_residual" not in off["architecture"]
    assert "plugins" not in off
    source = (EXAMPLES / "value_residual.py").read_text()
    assert (tmp_path / "runs" / "on" / "plugins" / "value_residual.py").read_text() == source
    assert read_json(tmp_path / "runs" / "on" / "result.json")["name"].endswith("-VRes")
    with pytest.raises(SystemExit):
        train.main([*flags, "--help"])
    assert "mix each layer's values" in capsys.readouterr().out


def forget_plugins() -> None:
    """As in another process: no plugin is loaded."""
    for name in list(plugin.LOADED):
        plugin.forget(name)
        del plugin.LOADED[name]


def test_what_reads_a_run_without_its_plugin(tmp_path, capsys, monkeypatch):
    """Catches: `compare` that a run with a plugin breaks, that runs code out of a run's folder, or leaves an axis out
    of runs at its default; `generate` and a resume that go on without the plugin, or with another."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "value_residual.py", "value_residual.py")
    flags = ["--plugin", "value_residual.py", *SMALL.split(), "--preset", "llama", "--max_iters", "4"]
    flags += ["--checkpoint_interval", "2"]
    assert train.main([*flags, "--value_residual", "True", "--name", "on"]) == 0
    assert train.main([*flags, "--name", "off"]) == 0
    forget_plugins()
    digest = read_json(tmp_path / "runs" / "on" / "config.json")["plugins"][0]["sha256"]
    capsys.readouterr()

    assert compare.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["axis"], row["value"], row["pairs"]) for row in found["effects"]} == {
        ("value_residual", False, 1),
        ("value_residual", True, 1),
    }
    assert not plugin.LOADED

    (tmp_path / "runs" / "on" / "result.json").unlink()
    for command in (
        lambda more: generate.main(["runs/on", "--tokens", "2", *more]),
        lambda more: export.main(["runs/on", "--to", "huggingface", "out", *more]),
        lambda more: train.main(["--resume", "runs/on", *more]),
    ):
        assert command([]) == 2
        assert "plugin value_residual.py" in (said := capsys.readouterr().err)
        assert "is not loaded" in said
        assert said.count("\n") == 1

    changed = Path("value_residual.py").read_text() + "\n# another\n"
    Path("value_residual.py").write_text(changed)
    assert train.main(["--resume", "runs/on", "--plugin", "value_residual.py"]) == 2
    said = capsys.readouterr().err
    assert digest in said
    assert plugin.LOADED["value_residual.py"].sha256 in said
    forget_plugins()
    Path("value_residual.py").write_text((EXAMPLES / "value_residual.py").read_text())
    assert train.main(["--resume", "runs/on", "--plugin", "value_residual.py"]) == 0
    assert generate.main(["runs/on", "--tokens", "2", "--plugin", "value_residual.py"]) == 0


def test_two_files_of_one_name(tmp_path):
    """Catches: a second plugin that takes the place of the first, in a process that has models of it."""
    (tmp_path / "other").mkdir()
    loader.load(written(tmp_path, 'plugins.norm("a")(Base)'))
    loader.load(written(tmp_path, 'plugins.norm("a")(Base)'))
    with pytest.raises(UserError, match=r"plugin mine.py is loaded already, with sha256 \w+, not \w+"):
        loader.load(written(tmp_path / "other", 'plugins.norm("b")(Base)'))
    with pytest.raises(UserError, match=r"normalization 'a' is taken by plugin mine.py"):
        loader.load(written(tmp_path, 'plugins.norm("a")(Base)', "theirs.py"))


def test_plugins_of_a_space_and_of_a_config(tmp_path, capsys):
    """Catches: `plugins:` that is looked for beside the working directory, or refused as an unknown key."""
    path = written(tmp_path, 'plugins.norm("scaled")(Base)')
    (tmp_path / "space.yaml").write_text("plugins: [mine.py]\nbase: llama\naxes: {normalization: [rmsnorm, scaled]}\n")
    assert tune.main(["--space", str(tmp_path / "space.yaml"), "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"] == 2
    (tmp_path / "run.yaml").write_text("plugins: mine.py\nnormalization: scaled\n")
    assert train.main(["--config", str(tmp_path / "run.yaml"), "--max_iters", "1"]) == 2
    assert "must be a list of files" in capsys.readouterr().err
    assert presets.main(["--plugin", path]) == 0


def test_a_nan_in_training_names_the_plugin(tmp_path, capsys, monkeypatch):
    """Catches: a divergence that reads as a finding about the architecture, where a plugin brought it."""
    body = """
@plugins.norm("later")
class Later(Base):
    calls = 0
    def forward(self, x):
        Later.calls += 1
        return self.weight * x * (float("nan") if Later.calls > 400 else 1.0)
"""
    monkeypatch.chdir(tmp_path)
    flags = ["--plugin", written(tmp_path, body), *SMALL.split(), "--preset", "llama", "--normalization", "later"]
    assert train.main([*flags, "--max_iters", "200", "--name", "run"]) == 1
    result = read_json(tmp_path / "runs" / "run" / "result.json")
    assert result["status"] == "diverged"
    assert result["reason"].endswith("with normalization=later of plugin mine.py")


def test_levels_of_this_process_reach_no_other():
    """Catches: a sweep whose lanes cannot know a level that a notebook registered, found out trial by trial."""
    from raytrain import plugins

    plugins.schedule("flat")(lambda config, step, warmup: 1.0)
    config = TrainConfig(architecture=preset("llama"), max_iters=1, schedule="flat")
    with pytest.raises(UserError, match="put them into a plugin's file"):
        loader.sources(config.to_dict())


def test_a_plugin_travels_as_source(tmp_path):
    """Catches: a lane that lacks a plugin, loads it anew for each job, or cannot name the line that failed."""
    path = written(tmp_path, '\n@plugins.activation("broken")\ndef broken(x):\n    raise ValueError("no")\n')
    loaded = loader.load(path)
    config = TrainConfig(architecture=preset("gpt2", activation="broken"), max_iters=1)
    carried = loader.sources(config.to_dict())
    forget_plugins()
    (again,) = [loader.load_source(name, source) for name, source in carried.items()]
    assert again.sha256 == loaded.sha256
    assert loader.load_source("mine.py", carried["mine.py"]) is again
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    from raytrain.axes import load

    with pytest.raises(ValueError, match="no") as raised:
        load(AXES["activation"].level("broken").make)(1.0)
    assert loader.line_in_plugin(raised.value) == "plugin mine.py, line 17"


def test_an_installed_package_brings_plugins(tmp_path, monkeypatch):
    """Catches: an entry point that no command loads, or that is loaded twice."""
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").write_text("")
    written(tmp_path / "their_package", 'plugins.norm("theirs")(Base)', "ideas.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = importlib.metadata.EntryPoint("ideas", "their_package.ideas", loader.ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    for _ in range(2):
        assert presets.main([]) == 0
    assert preset("llama", normalization="theirs").name.count("theirs") == 1
    assert list(plugin.LOADED) == ["ideas.py"]


def test_an_exception_in_a_plugin_names_its_line(tmp_path, capsys, monkeypatch):
    """Catches: a plugin's failure in training that reads as one of raytrain's, alone or in a lane."""
    body = """
@plugins.norm("later")
class Later(Base):
    calls = 0
    def forward(self, x):
        Later.calls += 1
        if Later.calls > 400:
            raise RuntimeError("too late")
        return self.weight * x
"""
    monkeypatch.chdir(tmp_path)
    flags = ["--plugin", written(tmp_path, body), *SMALL.split(), "--preset", "llama", "--normalization", "later"]
    assert train.main([*flags, "--max_iters", "200"]) == 2
    assert capsys.readouterr().err == "error: plugin mine.py, line 21: RuntimeError: too late\n"
    from raytrain.engine.lane import describe

    with pytest.raises(RuntimeError) as raised:
        loop.train(TrainConfig.from_dict(read_json(next((tmp_path / "runs").glob("*/config.json")))))
    said = describe(raised.value)
    assert (said["status"], said["reason"]) == ("failed", "RuntimeError: too late (in plugin mine.py, line 21)")
