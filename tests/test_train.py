"""The command line of one run."""

import dataclasses
import json
import subprocess
import sys
from unittest import mock

import pytest
import torch

from raytrain import train
from raytrain.architecture import preset
from raytrain.config.flags import train_parser
from raytrain.rundir.log import read_log
from raytrain.training.step import Stepper

SMALL = "--n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --global_batch 256 --eval_tokens 256"


def run(*flags: str, runs) -> int:
    return train.main([*SMALL.split(), *flags, "--runs", str(runs)])


def test_a_run_leaves_its_files_and_resumes_as_complete(tmp_path, capsys):
    """Catches a log that is not JSON, and a resume of a complete run that trains again or spoils its result."""
    assert run("--preset", "gpt2", "--normalization=rmsnorm", "--max_iters=3", "--name", "a", runs=tmp_path) == 0
    out = capsys.readouterr().out
    assert "1L-2H-32D-AbsPos-RMS-GELU-PostNorm" in out
    assert "MFU is not logged" in out
    assert "of training, on" not in out
    reports = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [reports[0]["event"], reports[-1]["event"]] == ["start", "end"]
    before = (tmp_path / "a" / "result.json").read_text()
    assert train.main(["--resume", str(tmp_path / "a")]) == 0
    assert "is complete" in capsys.readouterr().out
    assert (tmp_path / "a" / "result.json").read_text() == before


def test_a_file_s_axes_lie_over_its_preset_and_flags_over_both(tmp_path):
    """Catches a file whose preset takes its axes back, or that must give all nine, and a flag's preset that does so."""
    (tmp_path / "custom.yaml").write_text("normalization: layernorm\nbias: true\npreset: llama\n")

    def made(*flags):
        return train._resolved(_flags("--config", str(tmp_path / "custom.yaml"), *flags))[0].architecture

    llama = preset("llama", vocab_size=256, n_layer=1, n_head=2, n_embd=32, block_size=32)
    assert made() == dataclasses.replace(llama, normalization="layernorm", bias=True)
    assert made("--bias", "False") == dataclasses.replace(llama, normalization="layernorm")
    hybrid = made("--preset", "hybrid")
    assert (hybrid.ffn_type, hybrid.normalization, hybrid.bias) == ("standard", "layernorm", True)


class Started(Exception):
    """Ends a run at its first report."""


@pytest.mark.parametrize(
    ("first_step", "device", "rate", "said"),
    [
        (0, "cpu", None, "about 5.56 h of training, on 2 CPU cores at an assumed 50 GFLOP/s each\n"),
        (500, "cpu", None, "about 2.78 h of training, on 2 CPU cores at an assumed 50 GFLOP/s each\n"),
        (0, "cpu", 25e9, "about 11.1 h of training, on 2 CPU cores, measured at 0.025 TFLOP/s each\n"),
        (0, "NVIDIA H100 80GB HBM3", 1e11, "about 2.78 h of training, on 2 x NVIDIA H100 80GB HBM3, measured at"),
        (997, "cpu", None, ""),
    ],
)
def test_a_long_run_says_so_before_it_starts(tmp_path, capsys, monkeypatch, first_step, device, rate, said):
    """Catches three days that begin without a word, a resumed run that counts what is done, and an unused rate."""
    monkeypatch.setattr(train, "measured_rate", lambda config, *, now: rate)
    monkeypatch.setattr(train.torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(train, "Console", mock.MagicMock())

    def start(config, on_report, folder, interrupted, *, saving):
        on_report({"event": "start", "first_step": first_step, "total_steps": 1000, "world_size": 2, "device": device})
        raise Started

    monkeypatch.setattr(train, "train", start)
    with pytest.raises(Started):
        run("--flops", "2e15", runs=tmp_path)
    assert said in (out := capsys.readouterr().out)
    assert said or "of training, on" not in out


def test_a_long_run_starts_where_the_cache_may_not_be_read(tmp_path, monkeypatch):
    """Catches a guess that ends a run which needs no cache."""
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    config, _ = train._resolved(_flags("--flops", "1e18"))
    monkeypatch.setenv("RAYTRAIN_CACHE", str(tmp_path / "cache"))
    start = {"first_step": 0, "total_steps": 9, "world_size": 1, "device": "cpu"}
    assert "at an assumed" in train._time_ahead(config, start)


def test_the_last_line_has_the_peak_of_memory(tmp_path):
    """Catches a run on a CPU that says nothing of memory, and one on a GPU that gives the process's in its place."""
    result = {"status": "complete", "val_loss": 1.0, "train_flops": 1e12}
    assert "FLOPs, peak memory 3.50 GB. Log" in train._last_line(result | {"memory_peak_gb": 3.5}, tmp_path)
    script = (
        "from raytrain.train import _peak_memory as peak\nprint(peak({}))\nheld = bytearray(10**9)\nprint(peak({}))"
    )
    held = bytearray(10**9)  # in the process that starts the other, whose peak getrusage takes to begin with that
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, after = (float(text.removeprefix("peak memory of the process ").split()[0]) for text in out.splitlines())
    assert before < len(held) / 1e9 < after < before + 1.1


def test_exit_codes(tmp_path):
    """Catches a diverged run that a script takes for a good one."""
    assert run("--max_iters", "20", "--learning_rate", "1e30", "--grad_clip", "0", "--name", "d", runs=tmp_path) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--normalization rmsnrm", "Did you mean rmsnorm?"),
        ("--n_embd 100 --n_head 12", "n_embd (100) must be divisible by n_head (12); try 10 or 20"),
        ("--data /no/such/path", "'/no/such/path' is no folder"),
        ("--flops -1", "flops (-1.0) must be above 0"),
        ("--device cuda", "torch sees no GPU here"),
        ("--name ../x", "name ('../x') may have letters"),
        ("--seed 99999999999999999999999", "must be below 2^63"),
        ("--micro_batch 3", "micro_batch (3) must divide"),
        ("--normalisation rmsnorm", "Did you mean --normalization?"),
        ("config/arch_gpt2.py", "Unknown argument: config/arch_gpt2.py. Did you mean --preset gpt2 --scale 124m?"),
        ("arch_custom.py --bias=True", "Did you mean --config FILE.yaml --scale 124m?"),
        ("--arch_preset=llama", "Unknown argument: --arch_preset. Did you mean --preset?"),
        ("--use_fsdp=True", "Unknown argument: --use_fsdp. Did you mean --parallel fsdp?"),
        ("--use_zero1 True", "Unknown argument: --use_zero1. Did you mean --parallel zero1?"),
        ("--dtype=bfloat16", "Unknown argument: --dtype. Did you mean --precision?"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, flags, said):
    """Catches a mistake that surfaces as a traceback, or that takes the run's name with it."""
    assert run(*flags.split(), runs=tmp_path / "runs") == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "runs").glob("*/*"))


@pytest.mark.parametrize("steps", [0, 2])
def test_too_large_a_micro_batch_is_a_mistake_too(tmp_path, capsys, monkeypatch, steps):
    """Catches a page of the allocator's state for what has a simple remedy, and steps that go with the folder."""
    passes = Stepper.gradients

    def gradients(self, micro_batches, sequences, step):
        if step == steps:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB.\nProcess 1 has"
            )
        return passes(self, micro_batches, sequences, step)

    monkeypatch.setattr(Stepper, "gradients", gradients)
    assert run("--max_iters", "4", "--log_interval", "1", "--name", "a", runs=tmp_path) == 2
    err = capsys.readouterr().err
    assert "with micro_batch (8): CUDA out of memory. Tried to allocate 2.00 GiB. Less memory take" in err
    assert err.count("\n") == 1
    assert (tmp_path / "a" / "log.jsonl").exists() == (steps > 0)


@pytest.mark.parametrize("flags", ["--preset gpt2", "--scale 124m", "--name b", "--max_iters 9", "--learning_rate 1"])
def test_what_a_resume_cannot_change(tmp_path, capsys, flags):
    """Catches a flag that is silently ignored, or a run that goes on as another."""
    assert run("--max_iters", "3", "--name", "a", runs=tmp_path) == 0
    (tmp_path / "a" / "result.json").unlink()
    assert train.main(["--resume", str(tmp_path / "a"), *flags.split()]) == 2
    assert flags.split()[0][2:] in capsys.readouterr().err


def _killed(folder, **changes):
    """What a run leaves that was killed after two steps."""
    folder.mkdir(parents=True)
    config, _ = train._resolved(_flags("--max_iters", "3", **changes))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "log.jsonl").write_text(
        '{"event": "start"}\n{"event": "step", "step": 1}\n{"event": "step", "step": 9}\n'
    )


def _flags(*flags, **changes):
    parsed = train_parser().parse_args([*SMALL.split(), *flags])
    vars(parsed).update(changes)
    return parsed


@pytest.mark.parametrize("by", ["--resume", "--name"])
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tmp_path, capsys, by):
    """Catches a folder that can be neither resumed nor used again, and a log with the steps of both tries."""
    _killed(tmp_path / "a")
    flags = ["--resume", str(tmp_path / "a")] if by == "--resume" else [*SMALL.split(), "--max_iters=3", "--name=a"]
    assert train.main([*flags, "--runs", str(tmp_path)]) == 0
    assert "has no whole checkpoint: it starts anew" in capsys.readouterr().out
    reports = read_log(tmp_path / "a" / "log.jsonl")
    assert [r["step"] for r in reports if r["event"] == "eval"] == [1, 2, 3]
    assert reports[0]["first_step"] == 0
    assert not any(r.get("step") == 9 for r in reports)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "checkpoints",
        "config.json",
        "log.jsonl",
        "result.json",
    ]


def test_another_run_s_name_stays_taken(tmp_path, capsys):
    """Catches a killed run whose name a different one takes over, and two processes in one folder."""
    _killed(tmp_path / "a", learning_rate="0.5")
    flags = [*SMALL.split(), "--max_iters=3", "--name=a", "--runs", str(tmp_path)]
    assert train.main(flags) == 2
    assert "name (a) is taken" in capsys.readouterr().err
    with train._claimed(tmp_path / "a"):
        assert train.main(["--resume", str(tmp_path / "a")]) == 2
    assert "is in use: another process trains in it" in capsys.readouterr().err


def test_a_refused_resume_changes_nothing(tmp_path, capsys):
    """Catches a config.json that is overwritten before the checkpoint says no: then a plain resume is refused too."""
    flags = ["--max_iters", "3", "--checkpoint_interval", "1", "--name", "a"]
    assert run(*flags, runs=tmp_path) == 0
    (tmp_path / "a" / "result.json").unlink()
    before = (tmp_path / "a" / "config.json").read_bytes()
    assert train.main(["--resume", str(tmp_path / "a"), "--learning_rate", "0.5"]) == 2
    assert "its learning_rate is 0.001, not 0.5; resume with the same" in capsys.readouterr().err
    assert (tmp_path / "a" / "config.json").read_bytes() == before
    assert train.main(["--resume", str(tmp_path / "a"), "--log_interval", "1"]) == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["log_interval"] == 1
