"""Checkpoints by the S3 API itself: against a server of it on this machine."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from pyarrow import fs

from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.training.loop import train
from raytrain.training.storage import open_storage
from raytrain.uris import joined, shown

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The settings of an address in an S3 that holds the bucket `studies`."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    settings = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{process.stdout.readline().strip()}"
    s3, _ = fs.FileSystem.from_uri(f"s3://KEYID:TOPSECRET@studies?{settings}&allow_bucket_creation=true")
    s3.create_dir("studies")
    yield settings
    process.communicate()


@pytest.fixture(scope="module")
def config(tiny_run: Callable[..., TrainConfig]) -> TrainConfig:
    return tiny_run(preset="llama", max_iters=6, checkpoint_interval=3)


def test_trials_keep_apart_and_go_on(endpoint: str, config: TrainConfig) -> None:
    """Would catch trials that share one place, since their names stood behind the query, and so resume one another; and
    a checkpoint that S3 does not give back whole."""
    storage = f"s3://KEYID:TOPSECRET@studies/sweep?{endpoint}"
    places = [joined(storage, name) for name in ("t0", "t1")]
    seeds = [config, config.replace(seed=7)]
    losses = [train(run, folder=place)["train_loss"] for run, place in zip(seeds, places, strict=True)]
    assert losses[0] != losses[1]
    s3, _ = fs.FileSystem.from_uri(storage)
    found = s3.get_file_info(fs.FileSelector("studies/sweep"))
    assert sorted(info.path for info in found) == ["studies/sweep/t0", "studies/sweep/t1"]
    for place, run, loss in zip(places, seeds, losses, strict=True):
        assert open_storage(place).names() == ["step-00000003", "step-00000006"]
        open_storage(place).delete("step-00000006")
        reports: list[dict[str, object]] = []
        assert train(run, reports.append, place)["train_loss"] == loss
        assert reports[0]["checkpoint"] == "step-00000003"


def test_what_fails_is_said_without_the_keys(endpoint: str, config: TrainConfig) -> None:
    """Would catch keys in the error of a bucket that is not there, which a study stores and sends to MLflow."""
    storage = f"s3://KEYID:TOPSECRET@nowhere/sweep?{endpoint}"
    with pytest.raises(UserError) as error:
        train(config, folder=storage)
    text = str(error.value)
    assert text.startswith(f"folder ({shown(joined(storage, 'checkpoints'))}) cannot be reached: ")
    assert "KEYID" not in text
    assert "TOPSECRET" not in text
