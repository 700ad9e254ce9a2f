"""Blocks on real Prefect workers with the run on an object store: each process in a mirror of its own, or all in one.

`make workers` runs it, in minutes.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store
from prefect_site import Site, bytes_of, server_of_blocks
from tiny_datagen import build_alone
from tiny_profile import tiny_settings

from flows.profiles import load_profile

pytestmark = pytest.mark.workers


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as started:
        yield started


@pytest.fixture(scope="module")
def environment(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with server_of_blocks(tmp_path_factory.mktemp("prefect")) as variables:
        yield variables


@pytest.mark.parametrize("mirrors", ["own", "shared"])
def test_workers_meet_in_the_store(
    store: ObjectStore, environment: dict[str, str], tmp_path: Path, mirrors: str
) -> None:
    settings = tiny_settings() | {"shards": 2, "shards_per_block": 1, "captions_per_shard": 16}
    build_alone(load_profile("miniature", settings).dataset, tmp_path / "alone")
    site = Site(tmp_path, environment, settings)
    site.run = f"s3://bucket/{mirrors}"  # type: ignore[assignment]
    with site.open:
        for machine in ("first", "second", "planner"):
            cache = tmp_path / (machine if mirrors == "own" else "cache")
            site.environment = environment | {"DREAMCACHE_CACHE": str(cache)}
            if machine != "planner":
                site.add_workers(1)
        assert site.plan().wait() == 0, site.said()
    found = {key: one for key, one in store.objects(mirrors).items() if key.endswith((".tar", ".jsonl"))}
    assert found == bytes_of(tmp_path / "alone")
    assert "failed" not in site.said()
