"""What every test shares: one thread, no network, quiet Prefect, a home for its database; a pool of drawn scenes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from miniature.train.data import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> "Pool":
    """A small pool of drawn scenes, two groups; nobody writes to it."""
    from miniature.train.data import GROUP, Pool, render_pool

    folder = tmp_path_factory.mktemp("pool")
    render_pool(folder, scenes=2 * GROUP, workers=1)
    return Pool(folder)
