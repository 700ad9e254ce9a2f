"""The stage mechanism: markers, reasons, accounts, and its promises under kill -9, damage and races."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from word_shards import WORDS, write_words

from shards import files
from shards.files import read_json_lines
from shards.markers import checked_marker, marker_path, rejects_path
from shards.stage import ShardPlan, StageSpec, plan_shard

ROOT = Path(__file__).resolve().parents[1]


def upper_spec(**settings: object) -> StageSpec:
    return StageSpec("upper", 1, {"suffix": "!", **settings}, {"model": "sha256:aaa"}, ".tar")


def write_upper(run: Path, spec: StageSpec | None = None, index: int = 0) -> ShardPlan:
    plan = plan_shard(run, spec or upper_spec(), index, [WORDS.path(run, index)])
    with plan.writing({"device": "cpu"}) as out:
        for record in read_json_lines(plan.inputs[0]):
            out.add(record, {"txt": record["word"].upper().encode() + b"!"})
    return plan


def contents(run: Path) -> dict[str, bytes]:
    """Data and rejects of all shards; markers apart from times."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and not path.name.endswith(".done.json")
    }


def test_a_shard_is_written_with_its_accounts(tmp_path: Path) -> None:
    plan = plan_shard(tmp_path, WORDS, 0)
    assert (plan.state(), plan.changes()) == ("missing", ["words/00000: not made yet"])
    write_words(tmp_path, ["abc", "d", "efg"])
    assert plan.state() == "done" and plan.changes() == []
    marker = checked_marker(plan.path)
    assert (marker.records_in, marker.records_out, marker.rejected) == (3, 2, {"too short": 1})
    rejects = list(read_json_lines(rejects_path(plan.path)))
    assert rejects == [{"key": "0-1", "word": "d", "reason": "too short", "length": 1}]
    upper = write_upper(tmp_path)
    assert checked_marker(upper.path).execution["device"] == "cpu"
    assert sorted(path.name for path in upper.path.parent.iterdir()) == [
        "00000.done.json", "00000.rejects.jsonl", "00000.tar",
    ]  # fmt: skip


def test_changes_name_the_field(tmp_path: Path) -> None:
    write_words(tmp_path, ["abc", "def"])
    write_upper(tmp_path)
    inputs = [WORDS.path(tmp_path, 0)]

    def changes(spec: StageSpec) -> list[str]:
        return plan_shard(tmp_path, spec, 0, inputs).changes()

    assert changes(upper_spec()) == []
    assert changes(upper_spec(suffix="?")) == ['upper.suffix: "!" -> "?"']
    assert changes(upper_spec(more=[1, 2])) == ["upper.more: none -> [1, 2]"]
    assert changes(StageSpec("upper", 2, {"suffix": "!"}, {"model": "sha256:bbb"}, ".tar")) == [
        "upper.models.model: sha256:aaa -> sha256:bbb", "upper.version: 1 -> 2",
    ]  # fmt: skip
    write_words(tmp_path, ["abc", "xyz"], spec=StageSpec("words", 2, {}))
    line = changes(upper_spec())[0]
    assert line.startswith("upper.inputs.words/00000.jsonl: ") and " -> " in line


def test_an_unchanged_intermediate_stops_the_cascade(tmp_path: Path) -> None:
    write_words(tmp_path, ["abc", "def"])
    write_upper(tmp_path)
    other = StageSpec("words", 1, {"letters": 2})
    assert plan_shard(tmp_path, other, 0).state() == "stale"
    write_words(tmp_path, ["abc", "def"], spec=other)
    assert plan_shard(tmp_path, upper_spec(), 0, [other.path(tmp_path, 0)]).state() == "done"


def test_accounts_must_come_out_even(tmp_path: Path) -> None:
    plan = plan_shard(tmp_path, WORDS, 0)
    with pytest.raises(AssertionError, match="words/00000: 2 in, but 1 out and 0 rejected"):
        with plan.writing(records_in=2) as out:
            out.add({"key": "a"})
    with pytest.raises(AssertionError, match="words/00000: 1 in, but 1 out and 1 rejected"):
        with plan.writing(records_in=1) as out:
            out.add({"key": "a"})
            out.reject({"key": "b"}, "too many")
    with pytest.raises(ValueError, match="record a leaves the stage twice"):
        with plan.writing(records_in=2) as out:
            out.add({"key": "a"})
            out.reject({"key": "a"}, "late")
    assert plan.state() == "missing"
    assert list(plan.path.parent.iterdir()) == []


@pytest.mark.parametrize("key", ["../../etc/passwd", "a.b", "", "A", "a/b", "a\n", "x" * 81, 7, None])
def test_hostile_keys_are_refused(tmp_path: Path, key: object) -> None:
    with pytest.raises(ValueError, match="is not made of 1 to 80 of the characters"):
        with plan_shard(tmp_path, upper_spec(), 0).writing(records_in=1) as out:
            out.add({"key": key})


def test_hostile_text_survives(tmp_path: Path) -> None:
    text = 'quote " newline \n nul \0 separator \u2028 lone \ud800 arabic \u0645 ' + "x" * 10_000
    write_words(tmp_path, [text])
    assert [record["word"] for record in read_json_lines(WORDS.path(tmp_path, 0))] == [text]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "rejects"])
def test_damage_is_named_and_mended(tmp_path: Path, damage: str) -> None:
    write_words(tmp_path, ["abc", "d"])
    plan = write_upper(tmp_path)
    before = contents(tmp_path)
    content = bytearray(plan.path.read_bytes())
    match damage:
        case "flip":
            content[600] ^= 1
            plan.path.write_bytes(content)
        case "cut":
            plan.path.write_bytes(content[:512])
        case "empty":
            plan.path.write_bytes(b"")
        case "gone":
            plan.path.unlink()
        case "rejects":
            rejects_path(plan.path).write_bytes(b"{}")
    name = "00000.rejects.jsonl" if damage == "rejects" else "00000.tar"
    assert plan.state() == "stale"
    assert plan.changes() == [f"upper/00000: {name} is {'gone' if damage == 'gone' else 'torn or altered'}"]
    if damage != "rejects":
        with pytest.raises(ValueError, match="torn or altered"):
            checked_marker(plan.path)
    write_upper(tmp_path)
    assert contents(tmp_path) == before and plan.state() == "done"


def test_a_torn_input_is_waited_for(tmp_path: Path) -> None:
    write_words(tmp_path, ["abc", "def"])
    write_upper(tmp_path)
    WORDS.path(tmp_path, 0).write_bytes(b"")
    plan = plan_shard(tmp_path, upper_spec(), 0, [WORDS.path(tmp_path, 0)])
    assert plan.changes() == ["upper/00000: input words/00000.jsonl is not finished"]
    with pytest.raises(ValueError, match="input words/00000.jsonl is not finished"):
        with plan.writing():
            pass


KILLED = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    sys.path.insert(0, "tests")
    from shards import files
    from test_shards_stage import upper_spec, write_upper, write_words
    point, run, suffix = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    write_words(run, ["abc", "d", "efg"])
    files.reached = lambda name: os._exit(137) if name == f"upper/00000 {point}" else None
    write_upper(run, upper_spec(suffix=suffix))
""")


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "over-an-older-one"])
@pytest.mark.parametrize("point", ["opened", "written", "synced", "unmarked", "renamed", "marked"])
def test_killed_at_any_point(tmp_path: Path, point: str, earlier: bool) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    for folder in (undisturbed, run):
        write_words(folder, ["abc", "d", "efg"])
    write_upper(undisturbed)
    if earlier:
        write_upper(run, upper_spec(suffix="old"))
    code = subprocess.run([sys.executable, "-c", KILLED, point, run, "!"], cwd=ROOT).returncode
    assert code == 137
    inputs = [WORDS.path(run, 0)]
    state = plan_shard(run, upper_spec(), 0, inputs).state()
    assert (state == "done") == (point == "marked")
    if earlier and point in ("opened", "written", "synced"):  # the old shard is still whole
        assert plan_shard(run, upper_spec(suffix="old"), 0, inputs).state() == "done"
    write_upper(run)
    assert contents(run) == contents(undisturbed)
    assert not list(run.rglob(f"*{files.TEMPORARY}*"))


def test_no_marker_stands_beside_bytes_that_it_does_not_describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_words(tmp_path, ["abc", "d"]).path
    seen: list[tuple[str, bool, tuple[bytes, bytes]]] = []

    def both() -> tuple[bytes, bytes]:
        return path.read_bytes(), rejects_path(path).read_bytes()

    before = both()
    monkeypatch.setattr(
        files, "reached", lambda point: seen.append((point.split()[1], marker_path(path).exists(), both()))
    )
    write_words(tmp_path, ["xyz"], spec=StageSpec("words", 2, {}))
    assert seen[-4:] == [
        ("synced", True, before), ("unmarked", False, before),
        ("renamed", False, both()), ("marked", True, both()),
    ]  # fmt: skip
    assert both() != before


def test_no_shard_is_begun_while_another_is_finished(tmp_path: Path) -> None:
    """Between its creation and its lock a new file would be taken for one that a dead process left."""
    plan = plan_shard(tmp_path, WORDS, 0)
    plan.path.parent.mkdir()
    writer = threading.Thread(target=write_words, args=(tmp_path, ["abc"]))
    with files.locked_folder(plan.path.parent):
        writer.start()
        writer.join(0.2)
        assert writer.is_alive() and list(plan.path.parent.iterdir()) == []
    writer.join()
    assert plan.state() == "done"


def test_a_shard_at_work_is_no_leftover_to_another_process(tmp_path: Path) -> None:
    plan = plan_shard(tmp_path, WORDS, 0)
    with plan.writing(records_in=1) as out:
        out.add({"key": "a"})
        write_words(tmp_path, ["abc"], spec=StageSpec("words", 2, {}))
    assert plan.state() == "done"


RACER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, "tests")
    from shards import files
    from test_shards_stage import write_upper
    run, name = Path(sys.argv[1]), sys.argv[2]
    def meet(point):
        if point == "upper/00000 synced":
            (run / name).touch()
            while len(list(run.glob("racer-*"))) < 3:
                time.sleep(0.001)
    files.reached = meet
    write_upper(run)
""")


def test_processes_racing_for_a_marker_do_no_harm(tmp_path: Path) -> None:
    write_words(tmp_path, ["abc", "d", "efg"])
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, tmp_path, f"racer-{number}"], cwd=ROOT) for number in range(3)
    ]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    plan = plan_shard(tmp_path, upper_spec(), 0, [WORDS.path(tmp_path, 0)])
    assert plan.state() == "done"
    assert not list(tmp_path.rglob(f"*{files.TEMPORARY}*"))


@pytest.mark.parametrize("length", [300_000, 60_000], ids=["in-mid-shard", "at-its-last-write"])
def test_a_full_disk_loses_nothing(tmp_path: Path, length: int) -> None:
    """A file system that takes no more bytes in the middle of a shard: one error, the old shard whole, no leftovers."""
    write_words(tmp_path, ["a" * length, "def"])
    old = upper_spec(suffix="old")
    write_upper(tmp_path, old)
    before = contents(tmp_path)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_upper(tmp_path)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert contents(tmp_path) == before
    assert plan_shard(tmp_path, old, 0, [WORDS.path(tmp_path, 0)]).state() == "done"
    write_upper(tmp_path)


def test_light_settings_round_trip(tmp_path: Path) -> None:
    """A recipe read back from its marker equals the one planned, whatever containers the settings use."""
    spec = StageSpec("words", 1, {"pair": (1, 2), "text": "é", "number": 0.1})
    plan = write_words(tmp_path, ["abc"], spec=spec)
    assert json.loads(marker_path(plan.path).read_bytes())["recipe"] == plan.recipe
    assert plan.state() == "done"
