"""The client of vLLM's server against a real HTTP server that speaks its protocol, and fails, delays and dies."""

import json
import sys
from pathlib import Path

import pytest
from openai_server import Server, running

from datagen import captions, captions_vllm
from datagen.captions import CaptionsConfig, open_captioner
from datagen.captions_transformers import PromptTokenizer
from datagen.config import Execution
from datagen.taxonomy import Taxonomy
from flows.profiles import miniature_checkpoints
from shards.files import read_json_lines
from shards.markers import Marker, read_marker
from shards.stage import ShardPlan, StageSpec, plan_shard

DOGS = Taxonomy.model_validate({"classes": ["dog"], "places": ["on a beach"]})
FAULTS = ["503", "reset", "cut short", "429", "nonsense", "hang", "500"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_vllm, "FIRST_WAIT", 0.01)


def config_of(**server: object) -> CaptionsConfig:
    return CaptionsConfig(
        model=str(miniature_checkpoints() / "llama"), taxonomy="", engine="vllm", reply="schema", server=server,
        execution=Execution(batch_size=16),
    )  # fmt: skip


def plan_of(run: Path, count: int = 40) -> ShardPlan:
    settings = {"seed": 0, "captions_per_shard": count}
    return plan_shard(run, StageSpec("captions", 1, settings, {"model": "sha256:x"}), 0)


def write_shard(run: Path, config: CaptionsConfig, count: int = 40) -> Marker:
    with open_captioner(config, run / "server.log") as captioner:
        execution = config.execution.model_dump()
        return captions.run(plan_of(run, count), config, DOGS, captioner, execution, lambda done, total: None)


def numbers(run: Path) -> list[int]:
    """Which reply each record holds, in the order of the records."""
    return [int(record["caption"].split()[3]) for record in read_json_lines(plan_of(run).path)]


def test_what_is_asked_and_that_replies_stay_in_order(tmp_path: Path) -> None:
    with running() as server:
        config = config_of(address=f"{server.address}/v1/", concurrency=4)
        server.delay = 0.02
        assert write_shard(tmp_path, config).records_out == 40
    assert server.most_under_way == 4
    asked = {request["seed"]: request for request in server.received}
    records = list(read_json_lines(plan_of(tmp_path).path))
    assert len(asked) == len(server.received) == len(records) == 40
    assert [json.loads(record["raw"])["caption"] for record in records] == [one["caption"] for one in records]
    assert [f"a dog number {seed} on a beach" for seed in numbers(tmp_path)] == [one["caption"] for one in records]
    request = next(iter(asked.values()))
    assert (request["temperature"], request["top_p"], request["max_tokens"]) == (1.0, 0.95, 128)
    schema = request["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["subject", "class", "caption"] and schema["additionalProperties"] is False
    tokenizer = PromptTokenizer(config).tokenizer
    assert tokenizer.decode(request["prompt"]) == "<|begin_of_text|>Subject: dog\nPlace: on a beach\nJSON:\n"


def test_failing_requests_are_made_again_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    with running() as server:
        write_shard(tmp_path / "undisturbed", config_of(address=server.address))
    with running() as server:
        server.fault = lambda number: FAULTS[number // 3 % len(FAULTS)] if number % 3 == 0 else None
        marker = write_shard(tmp_path / "failing", config_of(address=server.address, timeout=0.5))
    assert len(server.received) > 50
    assert (marker.records_in, marker.records_out) == (40, 40)
    assert numbers(tmp_path / "failing") == numbers(tmp_path / "undisturbed")
    assert len(set(numbers(tmp_path / "failing"))) == 40


@pytest.mark.parametrize(
    ("fault", "tries", "said"),
    [("400", 1, "refuses a request: HTTP 400: .*no"), ("503", 3, "failed at a request in 3 tries: HTTP 503")],
)
def test_a_shard_whose_requests_fail_for_good_is_not_there_and_made_later(
    tmp_path: Path, fault: str, tries: int, said: str
) -> None:
    with running() as server:
        config = config_of(address=server.address, retries=2, concurrency=1)
        server.fault = lambda number: fault if number > 20 else None
        with pytest.raises(RuntimeError, match=f"captions: the server at {server.address} {said}") as caught:
            write_shard(tmp_path, config)
        assert "\n" not in str(caught.value)
        assert len(server.received) >= 20 + tries
        assert read_marker(plan_of(tmp_path).path) is None and list(tmp_path.rglob("*.jsonl*")) == []
        server.fault = lambda number: None
        assert write_shard(tmp_path, config).records_out == 40


def test_several_captions_a_request(tmp_path: Path) -> None:
    with running() as server:
        config = config_of(address=server.address).model_copy(update={"captions_per_request": 4})
        assert write_shard(tmp_path, config, count=24).records_out == 24
    assert len(server.received) == 6 and {request["max_tokens"] for request in server.received} == {4 * 128}
    found = numbers(tmp_path)
    assert found == [first + position for first in found[::4] for position in range(4)]
    prompt = PromptTokenizer(config).tokenizer.decode(server.received[0]["prompt"])
    assert prompt.count("Subject: dog") == 4 and "\n4.\nSubject" in prompt and prompt.endswith("JSON:\n")


def as_vllm(folder: Path) -> str:
    """A "python" that runs the tests' server where it is asked to run vLLM's."""
    script = folder / "python"
    script.write_text(
        f'#!/bin/sh\nshift 2\nexec {sys.executable} {Path(__file__).with_name("openai_server.py")} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_a_server_of_ones_own_that_dies_in_mid_shard(tmp_path: Path) -> None:
    python = as_vllm(tmp_path)
    write_shard(tmp_path / "undisturbed", config_of(python=python))
    dying = config_of(python=python, arguments=("--die-at=25",), concurrency=2)
    with pytest.raises(RuntimeError, match="the vLLM server ended with code -9: .*server.log"):
        write_shard(tmp_path / "killed", dying)
    assert read_marker(plan_of(tmp_path / "killed").path) is None
    assert write_shard(tmp_path / "killed", config_of(python=python)).records_out == 40
    shards = [plan_of(tmp_path / name).path.read_bytes() for name in ("undisturbed", "killed")]
    assert shards[0] == shards[1]


def test_the_server_runs_the_commit_that_the_identity_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_vllm, "pinned", lambda location, name: {"revision": "0123abc"})
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="ended with code 3: -m vllm.* --revision=0123abc "):
        write_shard(tmp_path, config_of(python=str(python)))


def test_wrong_servers_are_one_line(tmp_path: Path) -> None:
    with running(model="another") as server, pytest.raises(ValueError, match="serves another, not .*llama"):
        write_shard(tmp_path, config_of(address=server.address))
    gone = Server()
    gone.server_close()
    with pytest.raises(RuntimeError, match="no OpenAI-compatible server answers at .*; start a vLLM server there"):
        write_shard(tmp_path, config_of(address=gone.address))
    with pytest.raises(RuntimeError, match="the vLLM server ended with code 1: .*vllm.*captions.server.python names"):
        write_shard(tmp_path, config_of())
