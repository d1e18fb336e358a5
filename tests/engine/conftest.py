import logging
import os
from collections.abc import Iterator

import pytest
import ray

from raytrain.engine.cluster import _RAY_ENVIRONMENT


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests, as starting one takes seconds; with a study's settings, as a lane may take a minute."""
    for variable, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
