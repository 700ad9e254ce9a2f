"""vLLM's real server on the CPU with the miniature's Llama: structured replies, a kill in mid-shard, and what is left.

`make vllm` runs these tests and fails without vLLM; `make test` leaves them out.
"""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from datagen import captions
from datagen.captions import CaptionsConfig, open_captioner
from datagen.captions_vllm import VllmCaptioner
from datagen.config import Execution
from datagen.taxonomy import load_taxonomy
from flows.profiles import miniature_checkpoints
from shards.files import read_json_lines
from shards.markers import read_marker, rejects_path
from shards.stage import ShardPlan, StageSpec, plan_shard

pytestmark = pytest.mark.vllm

COUNT, BATCH = 24, 8


def group_members(group: int) -> list[str]:
    """The processes of a process group that still run."""
    lines = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]


def test_a_server_killed_in_mid_shard_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    checkpoints = miniature_checkpoints()
    taxonomy = load_taxonomy(checkpoints / "taxonomy.json")
    config = CaptionsConfig(
        model=str(checkpoints / "llama"), taxonomy=str(checkpoints / "taxonomy.json"), engine="vllm", reply="schema",
        execution=Execution(batch_size=BATCH),
        server={
            "python": os.environ["DREAMCACHE_VLLM_PYTHON"],
            "arguments": ["--enforce-eager", "--max-model-len", "256"],
            "concurrency": 4,
            "retries": 2,
        },
    )  # fmt: skip

    execution = config.execution.model_dump()

    def plan_of(index: int) -> ShardPlan:
        settings = {"seed": 0, "captions_per_shard": COUNT}
        return plan_shard(tmp_path, StageSpec("captions", 1, settings, {"model": "sha256:x"}), index)

    def check(index: int) -> None:
        plan = plan_of(index)
        marker = read_marker(plan.path)
        assert marker is not None and marker.records_in == COUNT
        records = [*read_json_lines(plan.path), *read_json_lines(rejects_path(plan.path))]
        assert sorted(record["key"] for record in records) == [f"{index:05d}-{n:05d}" for n in range(COUNT)]
        # Every reply obeys the schema; that the caption fits its request, the model has learned.
        assert all(set(json.loads(record["raw"])) == {"subject", "class", "caption"} for record in records)
        assert marker.records_out >= 0.75 * COUNT, Counter(marker.rejected)
        assert len({record["raw"] for record in records}) > COUNT / 2

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="the vLLM server ended with code -9"):
        with open_captioner(config, tmp_path / "first.log") as captioner:
            assert isinstance(captioner, VllmCaptioner) and captioner.server is not None
            group = captioner.server.pid
            print(f"started in {time.monotonic() - started:.0f} s")

            def kill(done: int, total: int) -> None:
                os.kill(group, signal.SIGKILL)

            started = time.monotonic()
            captions.run(plan_of(0), config, taxonomy, captioner, execution, lambda done, total: None)
            print(f"{COUNT} captions in {time.monotonic() - started:.1f} s")
            assert len(group_members(group)) > 1  # the server has children of its own, in its group
            captions.run(plan_of(1), config, taxonomy, captioner, execution, kill)
    deadline = time.monotonic() + 60
    while left := group_members(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    check(0)
    assert read_marker(plan_of(1).path) is None and not plan_of(1).path.exists()

    with open_captioner(config, tmp_path / "second.log") as captioner:
        captions.run(plan_of(1), config, taxonomy, captioner, execution, lambda done, total: None)
    check(1)
