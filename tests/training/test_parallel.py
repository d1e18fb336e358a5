"""Every strategy is the same training."""

import pytest
import torch

from raytrain import kernels
from raytrain.errors import UserError
from raytrain.model import build
from raytrain.training import parallel
from raytrain.training.loop import train
from raytrain.training.objective import NextTokenLoss
from tests.ranks import Ranks, read_losses, write_all_losses, write_losses

ARCHITECTURES = {
    "gpt2": {"preset": "gpt2"},
    "llama": {"preset": "llama"},
    "odd": {
        "preset": "custom",
        "position_encoding": "none",
        "normalization": "rmsnorm",
        "norm_position": "post",
        "ffn_type": "standard",
        "activation": "relu",
        "attention_backend": "manual",
        "bias": True,
        "weight_tying": True,
        "dropout": 0.0,
    },
}
ARCHITECTURES |= {
    "modern": {
        "preset": "llama",
        "qk_norm": True,
        "attention_window": (8, "nope"),
        "attention_gate": "head",
        "value_embeddings": True,
        "norm_position": "sandwich",
        "logit_softcap": 15.0,
        "z_loss": 1e-3,
        "rope_fraction": 0.5,
        "optimizer": "muon",
    },
    "moe": {"preset": "llama", "ffn_type": "moe", "n_shared_expert": 1, "parallel_block": True, "optimizer": "muon"},
}
VARIANTS = {
    "ddp": {"parallel": "ddp"},
    "ddp, accumulated": {"parallel": "ddp", "micro_batch": 2},
    "zero1": {"parallel": "zero1"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, a replica a rank": {"parallel": "fsdp", "fsdp_shard_size": 1},
    "fsdp, accumulated and recomputed": {"parallel": "fsdp", "micro_batch": 4, "activation_checkpointing": "full"},
}


@pytest.fixture(scope="module")
def losses(tiny_run, tmp_path_factory) -> dict[tuple[str, str], dict[int, float]]:
    """Losses of 20 steps: by architecture, of one process ("single"), and of two by variant."""
    folder = tmp_path_factory.mktemp("parallel")
    runs = {(a, v): tiny_run(**ARCHITECTURES[a], **VARIANTS[v]) for a in ARCHITECTURES for v in VARIANTS}
    assert Ranks(2, write_all_losses, list(runs.values()), folder).join() == [0, 0]
    found = {key: read_losses(folder / f"{index}.jsonl") for index, key in enumerate(runs)}
    for name, values in ARCHITECTURES.items():
        write_losses(tiny_run(**values), folder / f"{name}.jsonl")
        found[name, "single"] = read_losses(folder / f"{name}.jsonl")
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_processes_train_as_one(losses, name, variant):
    """Catches a gradient that is averaged twice or not at all, ranks that see the same data, and shards left behind."""
    assert len(losses[name, variant]) == 20
    assert losses[name, variant] == pytest.approx(losses[name, "single"], rel=1e-5)


def test_fsdp_in_bf16_computes_what_autocast_does(tiny_run, tmp_path):
    """Catches FSDP casting what autocast leaves in fp32, such as norm weights, which after ten steps are not 1."""
    run = tiny_run(preset="llama", precision="bf16", max_iters=10, learning_rate=1e-2, warmup_fraction=0.0)
    assert Ranks(2, write_losses, run.replace(parallel="fsdp"), tmp_path / "fsdp.jsonl").join() == [0, 0]
    write_losses(run, tmp_path / "single.jsonl")
    two, one = read_losses(tmp_path / "fsdp.jsonl"), read_losses(tmp_path / "single.jsonl")
    assert two[1] == pytest.approx(one[1], rel=1e-6)
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_accumulation_is_one_large_batch(losses, tiny_run, tmp_path, name):
    """Catches a loss that is averaged over micro-batches of unequal weight: 1 x 16 sequences = 4 x 4."""
    write_losses(tiny_run(**ARCHITECTURES[name], micro_batch=4), tmp_path / "out.jsonl")
    assert read_losses(tmp_path / "out.jsonl") == pytest.approx(losses[name, "single"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp"])
def test_a_world_of_one_runs_every_strategy(losses, tiny_run, tmp_path, strategy):
    """Catches a strategy that cannot resume on one rank: each must also train there, and leave no process group."""
    for _ in range(2):
        write_losses(tiny_run(preset="llama", parallel=strategy), tmp_path / "out.jsonl")
    assert read_losses(tmp_path / "out.jsonl") == pytest.approx(losses["llama", "single"], rel=1e-5)


def test_a_short_last_step_weighs_its_tokens_alone(tiny_run, tmp_path):
    """Catches padding that counts in the loss or the gradient: 35 sequences are two steps of 16 and one of 3."""
    runs = [tiny_run(tokens=35 * 32, micro_batch=b, parallel=p) for b, p in ((16, "single"), (1, "single"), (4, "ddp"))]
    write_losses(runs[0], tmp_path / "one.jsonl")
    write_losses(runs[1], tmp_path / "micro.jsonl")
    assert Ranks(2, write_losses, runs[2], tmp_path / "two.jsonl").join() == [0, 0]
    expected = read_losses(tmp_path / "one.jsonl")
    assert len(expected) == 3
    for other in ("micro", "two"):
        assert read_losses(tmp_path / f"{other}.jsonl") == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_does_not_divide_is_named(tiny_run):
    """Catches a micro-batch that silently changes the global batch."""
    with pytest.raises(UserError, match=r"micro_batch \(5\) must divide the 16 sequences of a rank's step; try 4"):
        train(tiny_run(micro_batch=5))


def test_another_call_of_our_kernel_is_another_program(tiny_run, tmp_path, monkeypatch):
    """Catches a gradient by an older `silu.py`: PyTorch's cache on disk would take it, having seen its kernel alone."""
    config = tiny_run(compile=True)
    world = parallel.World(0, 1, torch.device("cpu"), "single", torch.float32)
    monkeypatch.setattr(torch.compiler.config, "cache_key_tag", "")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    tags = set()
    for text in ("BLOCK = 1024", "BLOCK = 2048"):
        (tmp_path / "silu.py").write_text(text)
        parallel.parallelize(NextTokenLoss(build(config.architecture)), config, world)
        tags.add(torch.compiler.config.cache_key_tag)
    assert len(tags) == 2
