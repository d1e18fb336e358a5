"""A cluster of two nodes on this machine, one of which is killed in the middle of a study: the study has to complete.

    pip install "ray[default]==2.60.0"
    python benchmarks/nodes.py [--seeds 3] [--drain]

Each node is a raylet with one CPU, so each holds one lane. The driver joins the first by RAY_ADDRESS, with a token of
this benchmark's own. Once the second has a trial in training, after the first few have ended, all its processes are
killed at once. What it trained must be found lost and end on the node that is left, from its checkpoint. With --drain
Ray is told before, as of a spot instance: the checkpoint must then be of the step at which the trial was interrupted.
"""

import argparse
import contextlib
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ray
import torch
from chaos import descendants, kill_tree

from raytrain.rundir.log import read_log

STUDY = (
    "--space presets --max_iters 150 --checkpoint_interval 20 --n_layer 2 --n_embd 64 --n_head 2 --eval_tokens 2048 "
    "--device cpu --name nodes"
)
WORKERS = """
import ray, sys
ray.init(sys.argv[1], logging_level="ERROR")
print(*(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" not in node["Resources"]))
"""
ENDED = 3  # trials that have ended before the node is killed


def environment(folder: Path) -> dict[str, str]:
    """That of all nodes and clients of a cluster: a new token, which all of them must show; `ray` and `python` ours."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def node(folder: Path, name: str, env: Mapping[str, str], *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node of a cluster, by `ray start`, up; at the end it and all that it started are killed."""
    ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
    command = ["ray", "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *ports, *flags]
    said = folder / f"{name}.log"
    with said.open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        while "Ray runtime started" not in said.read_text():
            if process.poll() is not None:
                sys.exit(said.read_text())
            time.sleep(0.2)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all below it, as a machine that loses its power does."""
    below = descendants(process.pid)
    kill_tree({process.pid: "", **below})
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of each of the four presets")
    parser.add_argument("--drain", action="store_true", help="tell Ray that the node will go, and kill it once it may")
    flags = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}, ray {ray.__version__}")
    with tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as temporary:
        folder, port = Path(temporary), free_port()
        env = environment(folder) | {"OMP_NUM_THREADS": "1"}
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        with (
            node(folder, "first", env, *head, "--num-cpus=1", f"--temp-dir={folder}/ray"),
            node(folder, "second", env, f"--address=127.0.0.1:{port}", "--num-cpus=1") as second,
        ):
            command = [sys.executable, "-m", "raytrain.tune", *STUDY.split(), "--seeds", str(flags.seeds)]
            command += ["--runs", str(folder / "runs"), "--concurrent", "2"]
            address = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
            with (folder / "driver.log").open("wb") as log:
                driver = subprocess.Popen(command, env=env | address, stdout=log, stderr=log)
            warn = (lambda: drain(f"127.0.0.1:{port}", env, folder / "runs" / "nodes")) if flags.drain else lambda: None
            killed = kill_once_it_trains(folder / "runs" / "nodes", driver, second, warn)
            print(f"the second node is killed with {killed} lanes on it", flush=True)
            driver.wait(900)
        print((folder / "driver.log").read_text()[-3500:])
        return judge(folder / "runs" / "nodes", driver.returncode, killed, drained=flags.drain)


def drain(address: str, env: Mapping[str, str], study: Path) -> None:
    """Tell Ray that the node which is not the head goes in a minute, and wait until a trial is lost for it."""
    listed = subprocess.run([sys.executable, "-c", WORKERS, address], env=env, stdout=subprocess.PIPE, check=True)
    command = ["ray", "drain-node", f"--address={address}", f"--node-id={listed.stdout.decode().split()[-1]}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60"]
    began = time.monotonic()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    while time.monotonic() < began + 60 and not any(e["event"] == "lost" for e in read_log(study / "events.jsonl")):
        time.sleep(0.2)
    print(f"drained: the trial is lost {time.monotonic() - began:.1f} s after the notice", flush=True)


def kill_once_it_trains(
    study: Path, driver: subprocess.Popen[bytes], second: subprocess.Popen[bytes], warn: Callable[[], object]
) -> int:
    """Kill the second node, after `warn`; how many lanes it had."""
    while driver.poll() is None:
        ended = sum(event["event"] == "end" for event in read_log(study / "events.jsonl"))
        lanes = [
            pid for pid, line in descendants(second.pid).items() if line.startswith("ray::ResourceTrainable.train")
        ]
        if ended >= ENDED and lanes:
            warn()
            kill(second)
            return len(lanes)
        time.sleep(0.2)
    return 0


def judge(study: Path, code: int, killed: int, *, drained: bool) -> int:
    """Print what became of the trials; 0 if all is as it should be."""
    trials = [trial["id"] for trial in json.loads((study / "study.json").read_text())["trials"]]
    events = read_log(study / "events.jsonl")
    results = [json.loads(path.read_text())["status"] for path in study.glob("trials/*/result.json")]
    lost = [event["trial"] for event in events if event["event"] == "lost"]
    starts = {
        trial: [r["first_step"] for r in read_log(study / "trials" / trial / "log.jsonl") if r["event"] == "start"]
        for trial in lost
    }
    print(f"driver ended with {code}; {len(trials)} trials, {dict(Counter(results))}")
    stopped = (
        {
            trial: [r["steps"] for r in read_log(study / "trials" / trial / "log.jsonl") if r["event"] == "lost"]
            for trial in lost
        }
        if drained
        else {}
    )
    for trial, steps in stopped.items():
        print(f"interrupted: {trial}, at step {' and '.join(map(str, steps))}")
    for trial, steps in starts.items():
        print(f"lost with the node: {trial}, which began at steps {' and '.join(map(str, steps))}")
    kept = all(set(steps) <= set(starts[trial]) for trial, steps in stopped.items())
    return int(bool(code) or results != ["complete"] * len(trials) or not killed or not lost or not kept)


if __name__ == "__main__":
    raise SystemExit(main())
