import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """The tests build the default corpus once, in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
