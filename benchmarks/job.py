"""`ray job submit` on a cluster of this machine with its dashboard and a token: it has to end as SUCCEEDED, ranked.

    pip install "ray[default]==2.60.0"
    python benchmarks/job.py [--space examples/dyt_norm.yaml --plugin examples/dyt_norm.py ...]

What is given goes to `raytrain.tune`, in the place of `--space presets`. The dashboard listens on 127.0.0.1. First a
submission without the token, which must be refused; then README's.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import ray
import torch
from nodes import environment, free_port, node

ROOT = Path(__file__).parents[1]
STATUS = "from ray.job_submission import JobSubmissionClient as Jobs; print(Jobs({!r}).get_job_status('study').value)"
HEADING = "Loss bought per model FLOP, best first"


def main() -> int:
    print(f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}, ray {ray.__version__}")
    with tempfile.TemporaryDirectory(prefix="job-", ignore_cleanup_errors=True) as temporary:
        folder, port, dashboard = Path(temporary), free_port(), free_port()
        env = environment(folder) | {"OMP_NUM_THREADS": "1"}
        head = ["--head", f"--port={port}", f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}/ray"]
        head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2"]
        with node(folder, "head", env, *head):
            address = f"http://127.0.0.1:{dashboard}"
            tune = ["python", "-m", "raytrain.tune", *(sys.argv[1:] or ["--space", "presets"])]
            tune += ["--runs", str(folder / "runs")]
            submit = ["ray", "job", "submit", "--address", address, "--submission-id", "study"]
            submit += ["--working-dir", str(ROOT), "--", *tune]
            no_token = {name: value for name, value in env.items() if not name.startswith("RAY_AUTH")}
            refused = subprocess.run(
                submit, env=no_token | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True
            )
            said = (refused.stdout + refused.stderr).strip().splitlines()
            print(f"without a token: exit {refused.returncode}; {' '.join(said[-1:])}", flush=True)
            done = subprocess.run(submit, env=env, capture_output=True, text=True, timeout=900)
            asked = [sys.executable, "-c", STATUS.format(address)]
            status = subprocess.run(asked, env=env, capture_output=True, text=True).stdout.strip()
    ranking = HEADING + done.stdout.partition(HEADING)[2]
    print(ranking if done.returncode == 0 else done.stdout[-3000:] + done.stderr[-500:])
    print(f"status: {status}")
    return int(not (refused.returncode and done.returncode == 0 and status == "SUCCEEDED" and HEADING in done.stdout))


if __name__ == "__main__":
    sys.exit(main())
