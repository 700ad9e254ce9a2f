"""A dataset on an object store, by the commands and by two processes at once: the bytes of a local one, and mended."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from in_process import run_command
from kill_points import in_a_child
from object_store import ObjectStore, object_store, open_anew
from prefect_site import bytes_of
from tiny_datagen import build_alone
from tiny_profile import as_arguments, tiny_settings

from datagen.dataset import Dataset
from flows.cli import app
from flows.profiles import load_profile
from flows.server import prefect_server
from shards import objects, store
from shards.files import TEMPORARY

URL = "s3://bucket/runs/first"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ExitStack() as stack:
        stack.enter_context(prefect_server(tmp_path_factory.mktemp("prefect"), meanwhile=tiny_settings))
        yield stack.enter_context(object_store())


@pytest.fixture(scope="module")
def settings() -> dict[str, object]:
    return tiny_settings() | {"captions_per_shard": 8, "training.steps": 2, "training.checkpoint_every": 2}


@pytest.fixture(scope="module")
def expected(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes in a local folder."""
    run = tmp_path_factory.mktemp("alone")
    build_alone(load_profile("miniature", settings).dataset, run)
    return bytes_of(run)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine that has seen no run yet."""
    monkeypatch.setenv("DREAMCACHE_CACHE", str(tmp_path))
    store._stores.clear()
    return tmp_path


def dreamcache(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command in this process; its exit code, and what it said, the libraries' messages aside."""
    said = run_command(capsys, words)
    return said.code, said.out + "".join(line for line in said.err.splitlines(True) if line.startswith("dreamcache: "))


def shards_of(server: ObjectStore, run: str) -> dict[str, bytes]:
    found = server.objects(run)
    return {key: content for key, content in found.items() if key.endswith((".tar", ".jsonl")) or TEMPORARY in key}


def build_there(url: str, cache: Path, settings: dict[str, object]) -> None:
    build_alone(load_profile("miniature", settings).dataset, open_anew(url, cache))


@pytest.fixture(scope="module")
def built(server: ObjectStore, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the machine that built the dataset by the command."""
    cache = tmp_path_factory.mktemp("builder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMCACHE_CACHE", str(cache))
        app(["build-dataset", "--run", URL, *as_arguments(settings)], standalone_mode=False)
    return cache


def test_the_dataset_is_the_local_one_wherever_it_is_looked_at(
    server: ObjectStore, settings: dict[str, object], expected: dict[str, bytes], built: Path, machine: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert shards_of(server, "runs/first") == expected
    server.requests.clear()
    code, said = dreamcache(capsys, "build-dataset", "--run", URL, *as_arguments(settings))
    assert (code, said) == (0, f"All is up to date in {URL}.\n")
    assert not [one for one in server.requests if one.endswith((".tar", ".jsonl"))]
    code, said = dreamcache(capsys, "build-dataset", "--run", URL, *as_arguments(settings | {"shards": 3}), "--dry-run")
    assert code == 0 and "captions: 1 shard (00002) to make: not made yet" in said

    code, said = dreamcache(capsys, "inspect", URL, "--out", str(machine / "sheet.jpg"))
    assert code == 0 and "captions: 16 in, 16 out" in said and (machine / "sheet.jpg").is_file()
    code, said = dreamcache(capsys, "verify", URL)
    assert (code, said.splitlines()[-1]) == (0, f"{URL}: every marker, checksum, count and key is right.")
    code, said = dreamcache(capsys, "pull", URL, str(machine / "pulled"))
    assert code == 0 and bytes_of(machine / "pulled") == expected
    assert dreamcache(capsys, "verify", str(machine / "pulled"))[0] == 0


def test_damage_in_the_store_is_named_and_mended(
    server: ObjectStore, settings: dict[str, object], expected: dict[str, bytes], built: Path, machine: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flipped = bytearray(expected["images/00001.tar"])
    flipped[len(flipped) // 2] ^= 1
    server.put("runs/first/images/00001.tar", bytes(flipped))
    server.delete("runs/first/masks/00000.done.json")
    server.delete("runs/first/triplets/00001.tar")
    server.delete("runs/first/triplets/README.md")
    code, said = dreamcache(capsys, "verify", URL)
    assert code == 1 and [line for line in said.splitlines() if ": " in line] == [
        "images/00001.tar: altered: its checksum is another",
        "masks/00000.done.json: gone, though 00000.tar is there",
        "triplets/00001.tar: gone",
        "triplets/README.md: gone",
    ]
    code, said = dreamcache(capsys, "verify", URL, "--repair")
    assert code == 0 and said.splitlines()[-1] == f"{URL}: every marker, checksum, count and key is right."
    assert shards_of(server, "runs/first") == expected

    # A plain new start, on a machine that knows nothing, also makes again what is missing.
    server.delete("runs/first/masks/00001.done.json")
    server.delete("runs/first/triplets/00000.tar")
    store._stores.clear()
    shutil.rmtree(machine)
    code, said = dreamcache(capsys, "build-dataset", "--run", URL, *as_arguments(settings))
    assert code == 0 and "masks: 1 of 2 shards made" in said and "triplets: 1 of 2 shards made" in said
    assert shards_of(server, "runs/first") == expected


def test_training_reads_the_triplets_and_leaves_its_adapters_there(
    server: ObjectStore, settings: dict[str, object], built: Path, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train-adapters", "--run", URL, *as_arguments(settings))
    code, said = dreamcache(capsys, *words)
    assert code == 0, said
    adapters = [key for key in server.objects("runs/first") if key.startswith("training/adapters/")]
    assert "training/adapters/config.json" in adapters and len(adapters) > 1
    store._stores.clear()
    shutil.rmtree(machine)
    assert dreamcache(capsys, *words) == (0, f"All is up to date in {URL}.\n")
    assert dreamcache(capsys, "pull", URL, str(machine / "pulled"))[0] == 0
    assert dreamcache(capsys, "train-adapters", "--run", str(machine / "pulled"), *as_arguments(settings))[1] == (
        f"All is up to date in {machine / 'pulled'}.\n"
    )
    # Other settings, and on a machine that has not the earlier adapters: those are set aside in the store.
    before = {key: content for key, content in server.objects("runs/first").items() if key.startswith("training/")}
    server.put("runs/first/training/samples/00000002.png", b"a picture of then")
    store._stores.clear()
    shutil.rmtree(machine)
    assert dreamcache(capsys, *words, "--set", "training.learning_rate=0.01")[0] == 0
    after = server.objects("runs/first")
    (aside,) = {key.split("/")[0] for key in after if key.startswith("training.")}
    assert {key: after[key.replace("training/", f"{aside}/")] for key in before} == before
    assert after[f"{aside}/samples/00000002.png"] == b"a picture of then"
    assert "training/samples/00000002.png" not in after
    assert all(after[key] != before[key] for key in before if key.endswith("adapters.safetensors"))


def test_two_machines_at_once_make_the_same_bytes(
    server: ObjectStore, expected: dict[str, bytes], settings: dict[str, object], machine: Path
) -> None:
    url = "s3://bucket/runs/twice"

    def build(number: int) -> int:
        cache = machine / str(number)
        return in_a_child(lambda: build_there(url, cache, settings), machine / f"{number}.log")

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(build, range(2))) == [0, 0]
    run = open_anew(url, machine / "third")
    assert shards_of(server, "runs/twice") == expected
    assert Dataset(load_profile("miniature", settings).dataset, run).remaining() == []


def test_what_cannot_work_there_says_what_to_do(
    server: ObjectStore, settings: dict[str, object], machine: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hint = f"a local run folder is needed here: dreamcache pull {URL} FOLDER copies it"
    for words in (("run", "--run"), ("evaluate-adapters", "--run"), ("report", "--run"), ("export",), ("merge",)):
        more = {"export": [str(machine)], "merge": ["--run", str(machine / "out")]}.get(words[0], [])
        code, said = dreamcache(capsys, *words, URL, *more)
        assert code == 2 and said.endswith(f"{hint}\n") and said.count("\n") == 1, words
    for place, wrong in (("s3://nowhere/run", "there is no such bucket"), ("odd://a/b", "Protocol not known: odd")):
        code, said = dreamcache(capsys, "build-dataset", "--run", place)
        assert (code, said) == (2, f"dreamcache: {place}: {wrong}\n")
    assert dreamcache(capsys, "verify", "s3://bucket/none") == (
        2, "dreamcache: there is no run folder s3://bucket/none\n",
    )  # fmt: skip
    monkeypatch.setattr(objects, "PATIENCE", 1.0)
    server.fault = lambda method, key: "away"
    code, said = dreamcache(capsys, "build-dataset", "--run", URL)
    server.fault = lambda method, key: None
    assert code == 1 and said.splitlines()[-1] == (
        f"dreamcache: {URL} did not answer for 1 s (503): start again when it does, and all goes on where it stood"
    )
