"""What can be known of cluster.yaml and of the manifests in docs/cluster.md without a cloud."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def manifests() -> list[dict[str, Any]]:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    return [found for block in blocks for found in yaml.safe_load_all(block)]


def test_ray_accepts_it() -> None:
    """Would catch a key that Ray does not know or a node type that is not there: `ray up` would refuse the file."""
    validate_config(prepare_config(copy.deepcopy(CONFIG)))
    wrong = copy.deepcopy(CONFIG) | {"max_worker": 2}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))
    wrong = copy.deepcopy(CONFIG) | {"head_node_type": "nothing"}
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(wrong))


def test_nobody_else_runs_code_on_it() -> None:
    """Would catch a dashboard that the internet can submit jobs to, and nodes that ask for no token."""
    prepared = prepare_config(copy.deepcopy(CONFIG))
    starts = prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]
    for command in starts:
        assert "0.0.0.0" not in command
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
    assert any("--dashboard-host=127.0.0.1" in command for command in prepared["head_start_ray_commands"])
    assert "~/.ray/auth_token" in CONFIG["file_mounts"]


def test_gpus_are_where_the_trials_run() -> None:
    """Would catch trials on the head, nodes that never come or that stay for ever, and another machine than meant."""
    head, b200 = CONFIG["available_node_types"]["head"], CONFIG["available_node_types"]["b200"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert b200["node_config"]["InstanceType"] == "p6-b200.48xlarge"
    assert b200["resources"]["GPU"] == 8
    assert (b200["min_workers"], b200["max_workers"]) == (0, CONFIG["max_workers"])


def test_the_job_on_kubernetes() -> None:
    """Would catch a RayJob whose worker has no GPUs, whose nodes take no token, or that runs another command."""
    (job,) = [found for found in manifests() if found.get("kind") == "RayJob"]
    spec = job["spec"]
    assert job["apiVersion"] == "ray.io/v1"
    assert spec["entrypoint"].startswith("python -m raytrain.tune ")
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert workers["minReplicas"] == 0
