"""The flow that builds a dataset, on a Prefect server of its own: names, cached shards, accounts, locks."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.artifacts import Artifact
from tiny_datagen import tiny_dataset_config, tiny_models

from datagen.dataset import STAGES, Dataset, DatasetConfig
from flows.build_dataset import build
from flows.server import prefect_server
from shards.triplets import triplet_paths


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect_server(tmp_path_factory.mktemp("server"), meanwhile=tiny_models) as address:
        yield address


@flow(name="build-tiny-dataset")
def build_tiny(config: DatasetConfig, run: Path) -> list[Path]:
    return build(config, run)


def task_runs() -> Counter[tuple[str, str]]:
    """Names and final states of all task runs so far, from the server."""

    async def read() -> Counter[tuple[str, str]]:
        async with get_client() as client:
            return Counter((run.name, run.state.name if run.state else "") for run in await client.read_task_runs())

    return asyncio.run(read())


def test_shards_are_tasks_and_the_second_time_cached(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, run = tiny_dataset_config(tiny_models()), tmp_path / "run"
    names = {f"{stage} {index:05d}" for stage in STAGES for index in range(2)}
    with caplog.at_level(logging.INFO, "flows"):
        paths = build_tiny(config, run)
    assert paths == triplet_paths(run) and Dataset(config, run).remaining() == []
    assert any("captions: 2 of 2 shards made; 16 records in, 16 out" in line for line in caplog.messages)
    assert task_runs() == Counter({(name, "Completed"): 1 for name in names})
    accounts = Artifact.get("dataset-accounts")
    assert accounts is not None and "| captions | 16 | 16 | 0 |" in str(accounts.data)

    paths[0].write_bytes(b"")
    caplog.clear()
    with caplog.at_level(logging.INFO, "flows"):
        assert build_tiny(config, run) == paths
    assert "triplets/00000: 00000.tar is torn or altered; making it again" in caplog.messages
    expected = Counter({(name, "Completed"): 1 for name in names} | {(name, "Cached"): 1 for name in names})
    expected["triplets 00000", "Completed"] += 1
    del expected["triplets 00000", "Cached"]
    assert task_runs() == expected


def test_a_stage_that_lets_nothing_through_fails_the_flow(tmp_path: Path) -> None:
    config = tiny_dataset_config(tiny_models())
    gates = config.gates.model_copy(update={"min_area": 1.0})
    with pytest.raises(ValueError, match="gates: no record was left .*subject too small"):
        build_tiny(config.model_copy(update={"gates": gates}), tmp_path)


def test_each_of_several_blocks_is_a_run_that_a_retry_looks_at_again(tmp_path: Path) -> None:
    config, run = tiny_dataset_config(tiny_models()), tmp_path / "run"
    expected = build_tiny(config, tmp_path / "in-one-block")
    seen = []

    @flow(retries=1)
    def build_and_fail_once() -> list[Path]:
        paths = build(config.model_copy(update={"shards_per_block": 1}), run)
        seen.append([path.read_bytes() for path in paths])
        if len(seen) == 1:
            paths[0].write_bytes(b"")
            raise OSError("once")
        return paths

    paths = build_and_fail_once()
    assert seen == [[path.read_bytes() for path in expected]] * 2
    assert [path.read_bytes() for path in paths] == seen[0]

    async def names() -> Counter[str]:
        async with get_client() as client:
            return Counter(found.name for found in await client.read_flow_runs())

    blocks = {name: count for name, count in asyncio.run(names()).items() if name.startswith("shards ")}
    assert blocks == {"shards 00000 to 00000": 2, "shards 00001 to 00001": 2}
