"""What can be known of cluster.yaml and of the manifests in docs/cluster.md without a cloud."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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


def amount(text: str | int) -> float:
    """A quantity of Kubernetes, as far as the manifests have them: a number, or one of Gi."""
    return float(str(text).removesuffix("Gi"))


def test_the_queue_on_kubernetes() -> None:
    """Would catch: a queue that admits no study: names that differ, a resource not covered, too small a quota."""
    found = {manifest["kind"]: manifest for manifest in manifests()}
    assert {found[kind]["apiVersion"] for kind in ("ResourceFlavor", "ClusterQueue", "LocalQueue")} == {
        "kueue.x-k8s.io/v1beta2"
    }
    queue, local = found["ClusterQueue"], found["LocalQueue"]
    assert local["spec"] == {"clusterQueue": queue["metadata"]["name"]}
    assert "namespace" in local["metadata"]
    assert "namespace" not in queue["metadata"]
    assert queue["spec"]["namespaceSelector"] == {}  # every namespace; left out, it would be none
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == found["ResourceFlavor"]["metadata"]["name"]
    quota = {resource["name"]: amount(resource["nominalQuota"]) for resource in flavor["resources"]}
    assert list(quota) == group["coveredResources"]

    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    needed = dict.fromkeys(quota, 0.0)
    for spec, count in ((cluster["headGroupSpec"], 1), (workers, workers["maxReplicas"])):
        for container in spec["template"]["spec"]["containers"]:
            for name, value in container["resources"]["requests"].items():
                needed[name] += count * amount(value)
    assert all(needed[name] <= quota[name] < 2 * needed[name] for name in quota)
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert f"labels: {{kueue.x-k8s.io/queue-name: {local['metadata']['name']}}}" in page
    assert f"`replicas` and `minReplicas` are {workers['maxReplicas']}" in page


def locked() -> dict[str, list[tuple[str, str]]]:
    """Of each package in requirements.lock its versions, each with the marker of where it is installed."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.startswith(" "):
            name, version, marker = re.fullmatch(r"([a-z0-9-]+)==([^ ;]+)(?: ; (.*?))? ?\\?", line).groups()  # type: ignore[union-attr]
            found.setdefault(name, []).append((version, marker or ""))
    return found


def test_every_package_is_pinned_by_hash_and_names_no_index() -> None:
    """Would catch a package that is not checked when it is installed, and this machine's own index in the file."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.match(r"[a-z0-9-]+==|    --hash=sha256:[0-9a-f]{64}( |$)", line) for line in lines)
    heads = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    assert all(lines[number + 1].startswith("    --hash=") for number in heads)
    assert not re.search("://|index-url|find-links", "\n".join(lines))


def test_the_lock_is_that_of_pyproject() -> None:
    """Would catch a dependency that nodes lack or have in another version than pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = locked()
    for text in (*project["dependencies"], *project["optional-dependencies"]["cluster"]):
        wanted = Requirement(text)
        versions = pinned[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(version) for version, _ in versions), text
    (ray_version,) = {version for version, _ in pinned["ray"]}
    (job,) = [found for found in manifests() if found.get("kind") == "RayJob"]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray_version == ray.__version__


def test_nodes_install_the_lock_and_nothing_else() -> None:
    """Would catch nodes that run other versions than the driver, which was installed from the lock."""
    installs = [command for command in CONFIG["setup_commands"] if "pip install" in command]
    assert installs == ["~/venv/bin/pip install -q --require-hashes -r ~/requirements.lock"]
    assert CONFIG["file_mounts"]["~/requirements.lock"] == "requirements.lock"
    assert not any("pip install" in command for command in CONFIG["head_start_ray_commands"])
