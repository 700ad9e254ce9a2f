"""What every test shares: one thread, no network, quiet Prefect, a home for its database; models, scenes, a server."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone
    from miniature.train.data import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> "Pool":
    """A small pool of drawn scenes, two groups; nobody writes to it."""
    from miniature.train.data import GROUP, Pool, render_pool

    folder = tmp_path_factory.mktemp("pool")
    render_pool(folder, scenes=2 * GROUP, workers=1)
    return Pool(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> "Backbone":
    """A very small backbone, where a file of tests makes none of its own."""
    from tiny_diffusion import save_tiny_stable_diffusion

    from dreamcache.backbone import load_backbone

    return load_backbone(save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small triplet shards, where a file of tests makes none of its own."""
    from tiny_triplets import write_tiny_triplets

    return write_tiny_triplets(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for flows run with `tiny_settings`, whose models are made while it starts; its address."""
    from tiny_profile import tiny_settings

    from flows.server import prefect_server

    with prefect_server(tmp_path_factory.mktemp("server"), meanwhile=tiny_settings) as address:
        yield address
