import logging
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests: starting one takes seconds."""
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
