"""Shards on an object store, against moto's S3 server: the promises of a local folder under kill -9, races, damage and
a store that is away."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kill_points import in_a_child, points_reached
from object_store import ObjectStore, object_store, open_anew
from word_shards import write_words as write_word_shard

from shards import objects, store
from shards.files import TEMPORARY, read_json_lines
from shards.markers import marker_path, read_marker
from shards.stage import ShardPlan, StageSpec, plan_shard
from shards.store import bring, look_again

WORDS = StageSpec("words", 1, {"letters": 3})


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as started:
        yield started


@pytest.fixture(autouse=True)
def in_order(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fault, no request so far, no store open; what a test changes in the environment is put back."""
    monkeypatch.setenv("DREAMCACHE_CACHE", "")
    server.fault = lambda method, key: None
    server.requests.clear()
    store._stores.clear()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{request.node.name.translate(str.maketrans('[]', '--'))}"


def write_words(run: Path, words: tuple[str, ...] = ("abc", "d", "efg"), spec: StageSpec = WORDS) -> ShardPlan:
    return write_word_shard(run, [*words], spec=spec)


def upper_plan(run: Path, ending: str = "!") -> ShardPlan:
    return plan_shard(run, StageSpec("upper", 1, {"ending": ending}, suffix=".tar"), 0, [WORDS.path(run, 0)])


def write_upper(run: Path, ending: str = "!") -> ShardPlan:
    plan = upper_plan(run, ending)
    plan.bring_inputs()
    with plan.writing() as out:
        for record in read_json_lines(plan.inputs[0]):
            out.add(record, {"txt": (record["word"].upper() + ending).encode()})
    return plan


def local_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("done.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    write_words(tmp_path / "local")
    write_upper(tmp_path / "local")
    return local_bytes(tmp_path / "local")


def test_a_shard_on_a_store_is_the_local_one(
    server: ObjectStore, url: str, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    name = url.rpartition("/")[2]
    run = open_anew(url, tmp_path / "first")
    write_words(run)
    write_upper(run)
    assert server.objects(name) == expected
    assert server.get(f"{name}/upper/00000.done.json") == marker_path(upper_plan(run).path).read_bytes()

    server.requests.clear()
    run = open_anew(url, tmp_path / "second")
    plan = upper_plan(run)
    assert plan.state() == "done" and not plan.path.exists()
    assert not [one for one in server.requests if one.endswith((".tar", ".jsonl"))]
    bring([plan.path])
    assert plan.path.read_bytes() == expected["upper/00000.tar"]
    server.requests.clear()
    look_again(run)
    bring([plan.path])
    assert server.requests == ["GET "]  # one listing, and nothing else of what is here already


POINTS = ("opened", "written", "synced", "uploading", "uploaded", "published", "copying", "copied", "clearing")
POINTS += ("cleared", "unmarked", "renamed", "marked")
POINTS_OVER = ("synced", "uploaded", "published", "copying", "clearing", "marked")


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "over-an-older-one"])
def test_killed_at_any_point_and_started_on_another_machine(
    server: ObjectStore, url: str, tmp_path: Path, expected: dict[str, bytes], earlier: bool
) -> None:
    log = tmp_path / "points.log"
    for point in POINTS_OVER if earlier else POINTS:
        place = f"{url}/{point}"
        if earlier:
            run = open_anew(place, tmp_path / "earlier")
            write_words(run)
            write_upper(run, "old")

        def write(place: str = place) -> None:
            run = open_anew(place, tmp_path / "killed")
            write_words(run)
            write_upper(run)

        assert in_a_child(write, log, kill_at=f"upper/00000 {point}") == -signal.SIGKILL, point
        run = open_anew(place, tmp_path / "empty")
        finished = POINTS.index(point) >= POINTS.index("published")
        assert (upper_plan(run).state() == "done") == finished, point
        if not finished:
            write_upper(run)
        look_again(run)
        assert server.objects(place.removeprefix("s3://bucket/")) == expected, point
        bring([upper_plan(run).path])
        assert upper_plan(run).path.read_bytes() == expected["upper/00000.tar"]
    reached = [point.point for point in points_reached(log) if point.shard == "upper/00000"]
    assert reached[-len(POINTS) :] == list(POINTS)


def test_the_loser_of_a_race_takes_the_winners_bytes(server: ObjectStore, url: str, tmp_path: Path) -> None:
    """Two machines make a shard by one recipe with other bytes, as GPUs of two kinds do."""
    name = url.rpartition("/")[2]
    first, second = open_anew(url, tmp_path / "first"), tmp_path / "second"
    plan = plan_shard(first, WORDS, 0)
    with plan.writing(records_in=1) as out:
        out.add({"key": "a", "word": "slow"})
        here = dict(store._stores)
        other = open_anew(url, second)
        assert write_words(other, ("fast",)).state() == "done"
        won = server.objects(name)
        store._stores.update(here)
    assert out.marker == read_marker(WORDS.path(other, 0)) and plan.state() == "done"
    assert server.objects(name) == won and b"fast" in won["words/00000.jsonl"]
    assert not plan.path.exists()
    bring([plan.path])
    assert plan.path.read_bytes() == won["words/00000.jsonl"]


def test_an_outdated_marker_is_replaced_and_a_newer_one_kept(server: ObjectStore, url: str, tmp_path: Path) -> None:
    run = open_anew(url, tmp_path / "first")
    write_words(run)
    newer = StageSpec("words", 2, {})
    open_anew(url, tmp_path / "second")
    here = open_anew(url, tmp_path / "third")
    assert plan_shard(here, newer, 0).changes() == ["words.letters: 3 -> none", "words.version: 1 -> 2"]
    plan = plan_shard(here, newer, 0)
    with plan.writing(records_in=1) as out:
        out.add({"key": "a", "word": "late"})
        kept = dict(store._stores)
        write_words(open_anew(url, tmp_path / "second"), ("early",), newer)
        store._stores.update(kept)
    assert b"early" in server.objects(url.rpartition("/")[2])["words/00000.jsonl"]
    assert out.marker == read_marker(plan.path) and plan.state() == "done"


@pytest.mark.parametrize("harm", ["altered", "cut", "gone"])
def test_a_damaged_object_is_noticed_when_it_is_read(server: ObjectStore, url: str, tmp_path: Path, harm: str) -> None:
    name = url.rpartition("/")[2]
    write_words(open_anew(url, tmp_path / "first"))
    whole = server.objects(name)
    if harm == "gone":
        server.delete(f"{name}/words/00000.jsonl")
    else:
        content = whole["words/00000.jsonl"]
        server.put(f"{name}/words/00000.jsonl", content[:9] if harm == "cut" else content.replace(b"abc", b"abd"))
    run = open_anew(url, tmp_path / "second", writing=False)
    path = WORDS.path(run, 0)
    said = {"altered": [], "cut": ["00000.jsonl is torn or altered"], "gone": ["00000.jsonl is gone"]}[harm]
    assert plan_shard(run, WORDS, 0).changes() == [f"words/00000: {line}" for line in said]
    with pytest.raises(ValueError, match=f"{url}/words/00000.jsonl is damaged: run dreamcache verify {url} --repair"):
        bring([path])
    run = open_anew(url, tmp_path / "third")
    with pytest.raises(RuntimeError, match="was damaged: start again, and it is made again"):
        bring([WORDS.path(run, 0)])
    assert plan_shard(run, WORDS, 0).state() == "missing"
    write_words(run)
    assert server.objects(name) == whole


def test_what_is_made_anew_meanwhile_is_not_taken_for_the_old(server: ObjectStore, url: str, tmp_path: Path) -> None:
    write_words(open_anew(url, tmp_path / "first"))
    looking = open_anew(url, tmp_path / "looking")
    held = dict(store._stores)
    run = open_anew(url, tmp_path / "first")
    plan = upper_plan(run)
    write_words(run, ("xyz",), StageSpec("words", 2, {}))
    made = server.objects(url.rpartition("/")[2])
    with pytest.raises(RuntimeError, match=r"upper/00000: its input words/00000.jsonl was made anew meanwhile"):
        plan.bring_inputs()
    store._stores.update(held)
    with pytest.raises(RuntimeError, match=r"words/00000.jsonl was replaced meanwhile: start again"):
        bring([WORDS.path(looking, 0)])
    look_again(looking)
    bring([WORDS.path(looking, 0)])
    assert server.objects(url.rpartition("/")[2]) == made


def test_others_files_are_taken_note_of(server: ObjectStore, url: str, tmp_path: Path) -> None:
    name, run = url.rpartition("/")[2], open_anew(url, tmp_path / "first")
    marker = marker_path(write_words(run).path).read_bytes()
    for content in (b"old", b"new"):  # of one size
        server.put(f"{name}/config.json", content)
        look_again(run)
        assert (run / "config.json").read_bytes() == content
    server.delete(f"{name}/words/00000.done.json")
    look_again(run)
    assert plan_shard(run, WORDS, 0).state() == "missing"
    server.put(f"{name}/words/00000.done.json", marker)
    asked: list[str] = []

    def away_once(method: str, key: str) -> str | None:
        asked.extend([key] * key.endswith("done.json"))
        return "away" if asked == [key] else None

    server.fault = away_once
    look_again(run)
    assert len(asked) == 2 and plan_shard(run, WORDS, 0).state() == "done"


def test_where_no_time_is_listed_nothing_is_taken_for_a_leftover(tmp_path: Path) -> None:
    run = open_anew("memory://leftovers/run", tmp_path)
    write_words(run)
    opened, left = store.store_of(run), f"words/00000.jsonl{TEMPORARY}{'0' * 64}-0a"
    assert opened is not None and opened.objects.create(left, b"half")
    look_again(run)
    assert left in opened.objects.listing()


def test_what_dead_processes_left_goes_when_it_is_old(
    server: ObjectStore, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = url.rpartition("/")[2]
    run = open_anew(url, tmp_path)
    write_words(run)
    left = f"words/00000.jsonl{TEMPORARY}{'0' * 64}-0a"
    server.put(f"{name}/{left}", b"half")
    look_again(run)
    assert left in server.objects(name)  # of a process that may be at work
    monkeypatch.setattr(store, "LEFTOVER_SECONDS", -10)
    look_again(run)
    assert left not in server.objects(name) and plan_shard(run, WORDS, 0).state() == "done"


def test_a_store_that_is_away_for_a_while_is_waited_for(
    server: ObjectStore, url: str, tmp_path: Path, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    run = open_anew(url, tmp_path)
    write_words(run)
    until = time.monotonic() + 2
    server.fault = lambda method, key: "away" if time.monotonic() < until else None
    write_upper(run)
    assert server.objects(url.rpartition("/")[2]) == expected
    assert caplog.messages == [f"{url}: 503; trying again for up to 300 s"]


def test_a_store_that_stays_away_ends_with_one_line(
    server: ObjectStore, url: str, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_anew(url, tmp_path)
    write_words(run)
    monkeypatch.setattr(objects, "PATIENCE", 1.0)
    server.fault = lambda method, key: "away"
    with pytest.raises(RuntimeError, match=rf"^{url} did not answer for 1 s \(503.*\): start again when it does, and"):
        write_upper(run)
    server.fault = lambda method, key: None
    assert not list(run.rglob(f"*{TEMPORARY}*"))
    write_upper(open_anew(url, tmp_path / "again"))
    assert server.objects(url.rpartition("/")[2]) == expected


def test_processes_of_one_machine_share_a_mirror(server: ObjectStore, url: str, tmp_path: Path) -> None:
    """As block runs of one machine's workers do: each looks and writes while the other does."""
    shards = 6

    def write(first: int) -> None:
        run = open_anew(url, tmp_path / "cache")
        for index in range(first, 2 * shards, 2):
            look_again(run)
            with plan_shard(run, WORDS, index).writing(records_in=1) as out:
                out.add({"key": "a", "word": f"number {index}"})
            assert all(plan_shard(run, WORDS, done).state() == "done" for done in range(first, index + 1, 2))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda n: in_a_child(lambda: write(n), tmp_path / f"{n}.log"), range(2))) == [0, 0]
    assert len(server.objects(url.rpartition("/")[2])) == 4 * shards
    for cache in ("cache", "other"):
        run = open_anew(url, tmp_path / cache)
        assert all(plan_shard(run, WORDS, index).state() == "done" for index in range(2 * shards))
