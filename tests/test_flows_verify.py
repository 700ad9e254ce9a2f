"""Damage of every kind in a small dataset: each is named in one line, and a repair makes that again and no more."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_datagen import build_alone, tiny_dataset_config, tiny_models
from tiny_profile import as_arguments

from datagen.block import Block
from datagen.dataset import STAGES, Dataset
from flows.cli import app
from flows.describe import describe
from flows.plans import check_inputs, report_digest, training_step
from flows.profiles import Profile, changed_settings, load_profile, record_configuration, recorded_profile
from flows.server import prefect_server
from flows.steps import Step, recipe
from flows.verify import Verification, verify_run
from shards.files import sha256_of
from shards.markers import checked_marker
from shards.merge import merge_runs
from shards.triplets import triplet_paths

ROOT = Path(__file__).resolve().parents[1]


def build(profile: Profile, run: Path) -> list[str]:
    """Build a dataset without a flow; returns the shards that were made."""
    made = build_alone(profile.dataset, run)
    describe(run, profile)
    return made


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("miniature").model_copy(update={"dataset": tiny_dataset_config(tiny_models())})


@pytest.fixture(scope="module")
def whole(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    run.mkdir()
    record_configuration(run, profile)
    build(profile, run)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(run: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.name.endswith("done.json")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def flip_unseen(path: Path) -> None:
    """Flip one bit in the middle and set the file's time back: a rotten disk, not a writer."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def older_configuration(path: Path) -> None:
    """Make a shard again by other settings, as if only it had been left over from then."""
    run = path.parents[1]
    config = tiny_dataset_config(tiny_models())
    config = config.model_copy(update={"gates": config.gates.model_copy(update={"min_box_score": 1.0})})
    assert Block(Dataset(config, run)).make("gates", 1, lambda done, total: None) is not None


def edit_marker(path: Path) -> None:
    content = json.loads(path.read_bytes())
    content["records_out"] += 1
    path.write_text(json.dumps(content))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str, list[str]]] = {
    "flipped": ("images/00001.tar", flip_unseen, "altered: its checksum is another", ["images/00001"]),
    "cut": ("masks/00000.tar", lambda path: os.truncate(path, 1000), "cut short: 1000 of", ["masks/00000"]),
    "empty": ("dedup/00001.jsonl", lambda path: os.truncate(path, 0), "empty, where", ["dedup/00001"]),
    "gone": ("triplets/00000.tar", Path.unlink, "gone", ["triplets/00000"]),
    "rejects": (
        "captions/00000.rejects.jsonl",
        lambda path: path.write_text("{}\n"),
        "too long: 3 bytes instead of 0",
        ["captions/00000"],
    ),
    "unmarked": ("gates/00000.done.json", Path.unlink, "gone, though 00000.jsonl is there", ["gates/00000"]),
    "empty marker": ("gates/00001.done.json", lambda path: os.truncate(path, 0), "empty", ["gates/00001"]),
    "edited marker": ("images/00000.done.json", edit_marker, "altered: 8 in, 9 out, 0 rejected", ["images/00000"]),
    "stray": ("masks/00000.tar.tmp-1-0a", lambda path: path.write_bytes(b"x"), "a stray temporary file", []),
    "partial": ("config.json.partial", lambda path: path.write_bytes(b"x"), "a stray temporary file", []),
    "card": ("triplets/README.md", lambda path: path.write_text("mine"), "cut short: 4 of", []),
    "no marker": ("triplets/done.json", lambda path: path.write_text("{}"), "not a readable marker", []),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_mended_alone(kind: str, profile: Profile, whole: Path, run: Path) -> None:
    name, harm, said, remade = DAMAGE[kind]
    harm(run / name)
    found = Verification(run)
    (line,) = found.lines
    assert line.startswith(f"{name}: {said}")
    found.withdraw()
    assert build(profile, run) == remade
    assert Verification(run).lines == []
    assert contents(run) == contents(whole)


def test_a_shard_of_an_older_configuration_is_named(profile: Profile, whole: Path, run: Path) -> None:
    older_configuration(run / "gates" / "00001.jsonl")
    found = Verification(run)
    assert found.lines == [
        "triplets/00001.tar: older than gates/00001.jsonl, which it was made from",
        "gates: 1 shard (00001) to make: gates.min_box_score: 1.0 -> 0.0",
    ]
    found.withdraw()
    assert build(profile, run) == ["gates/00001"] and contents(run) == contents(whole)
    older_configuration(run / "gates" / "00001.jsonl")
    (run / "config.json").unlink()  # as in a folder that was copied without it
    assert Verification(run).lines == ["triplets/00001.tar: older than gates/00001.jsonl, which it was made from"]


def test_records_that_are_not_the_inputs_are_named(run: Path) -> None:
    """A shard of other records than its input's, though each of its checksums is right."""
    data, marker = run / "gates" / "00001.jsonl", run / "gates" / "00001.done.json"
    data.write_bytes(data.read_bytes().replace(b"00001-", b"00007-"))
    rejects = run / "gates" / "00001.rejects.jsonl"
    rejects.write_bytes(rejects.read_bytes().replace(b"00001-", b"00007-"))
    content = json.loads(marker.read_bytes())
    content["shard"]["sha256"], content["rejects"]["sha256"] = sha256_of(data), sha256_of(rejects)
    marker.write_text(json.dumps(content))
    assert "gates/00001.jsonl: its records and rejects are not its input's" in Verification(run).lines


def test_what_is_not_made_yet_and_what_is_too_much(profile: Profile, run: Path) -> None:
    for path in (run / "triplets").glob("00001.*"):
        path.unlink()
    assert Verification(run).lines == ["triplets: 1 shard (00001) to make: not made yet"]
    build(profile, run)
    (run / "triplets" / "done.json").unlink()
    assert Verification(run).lines == ["dataset card: not finished"]
    assert build(profile, run) == []
    smaller = profile.model_copy(update={"dataset": profile.dataset.model_copy(update={"shards": 1})})
    record_configuration(run, smaller, builds=True)
    (line,) = Verification(run).lines
    assert line == "triplets: 1 shard (00001) to leave out: the dataset is smaller now"


def test_what_trains_on_a_dataset_does_not_say_how_it_was_built(profile: Profile, run: Path, tmp_path: Path) -> None:
    other = load_profile("miniature", {"training.steps": 7})
    assert other.dataset != profile.dataset
    record_configuration(run, other)
    recorded = recorded_profile(run)
    assert recorded is not None and recorded.dataset == profile.dataset and recorded.training.steps == 7
    assert Verification(run).lines == []
    # A merge is no build, whatever is trained there later, and goes on.
    merged = tmp_path / "merged"
    merge_runs([run], merged, lambda done, total: None)
    record_configuration(merged, other)
    assert Verification(merged).lines == []
    flip_unseen(merged / "triplets" / "00001.tar")
    with pytest.raises(ValueError, match="was imported or merged: give that command again"):
        verify_run(merged, make_again=lambda command, made: pytest.fail(f"{command} is no repair of a merge"))
    merge_runs([run], merged, lambda done, total: None)
    assert Verification(merged).lines == []


def test_without_the_hub_the_files_are_verified_all_the_same(
    profile: Profile, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = profile.dataset.images.model_copy(update={"model": "owner/model"})
    dataset = profile.dataset.model_copy(update={"images": images})
    (run / "config.json").unlink()
    record_configuration(run, profile.model_copy(update={"dataset": dataset}), builds=True)
    flip_unseen(run / "images" / "00001.tar")

    def hub_commit(name: str, setting: str) -> str:
        raise OSError(f"{name} could not be fetched")

    monkeypatch.setattr("datagen.identity.hub_commit", hub_commit)
    found = Verification(run)
    assert found.lines == ["images/00001.tar: altered: its checksum is another"]
    assert any("owner/model could not be fetched" in line for line in found.unchecked)


def test_training_waits_for_all_shards_of_a_build(profile: Profile, run: Path) -> None:
    assert training_step(load_profile("miniature"), run).missing == ()
    (run / "triplets" / "00001.done.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"the dataset \(1 of 2 shards\) is not finished: run build-dataset"):
        check_inputs("train-adapters", load_profile("miniature"), run)


def test_training_waits_for_all_triplets_of_a_build(profile: Profile, run: Path) -> None:
    there = sum(checked_marker(path).records_out for path in triplet_paths(run))
    for target, expected in ((there, ()), (there + 1, (f"the dataset ({there} of {there + 1} triplets)",))):
        dataset = profile.dataset.model_copy(update={"target_triplets": target})
        record_configuration(run, profile.model_copy(update={"dataset": dataset}), builds=True)
        assert training_step(load_profile("miniature"), run).missing == expected
        assert Verification(run).lines == ([f"triplets: {there} of target_triplets {target}"] if expected else [])


def test_what_another_command_makes_is_not_repaired_but_named(run: Path) -> None:
    step = Step("training", run / "ablations" / "mid" / "training", recipe(1, {}, {}, {}))
    step.begin()
    (step.folder / "adapters").write_bytes(b"weights")
    step.finish([step.folder / "adapters"], {})
    assert Verification(run).lines == []
    flip_unseen(step.folder / "adapters")
    assert Verification(run).lines == ["ablations/mid/training/adapters: altered: its checksum is another"]
    with pytest.raises(ValueError, match=r"by its own command made again: ablations \(dreamcache ablate\)"):
        verify_run(run, make_again=lambda command, made: pytest.fail(f"{command} does not make this"))
    assert step.changes() == ["training: not finished"]


def test_what_was_begun_and_not_finished_is_made_again_in_order(profile: Profile, run: Path) -> None:
    found = Verification(run)
    found.outdated = ["sweep/image-0.5: not finished", "training: not finished"]
    assert found.commands() == ["train-adapters", "evaluate-adapters"]
    (run / "report.html").write_text("of another state")
    aside = Step("training", run / "training.0123abcd", recipe(1, {}, {}, {}))
    aside.reopen()
    aside.finish([aside.folder / "begun.json"], {})
    (aside.folder / "begun.json").unlink()  # of what was set aside nobody asks
    step = training_step(profile, run)
    step.begin()
    assert Verification(run).lines == ["training: not finished"]
    step.finish([], {})
    (run / "evaluation").mkdir()
    (run / "evaluation" / "begun.json").write_text("{}")
    assert Verification(run).lines == ["evaluation: the benchmark is not finished"]
    shutil.rmtree(run / "evaluation")
    assert Verification(run).lines == ["report.html: shows another state of this run"]
    assert verify_run(run, make_again=lambda command, made: pytest.fail(f"{command} writes no report")).lines == []


def test_a_report_is_known_however_its_run_is_spelt(
    profile: Profile, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert report_digest(profile, Path(run.name)) == report_digest(profile, run)


def test_the_command_names_faults_without_torch_or_prefect(run: Path) -> None:
    def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
        spy = (
            "import sys, flows.cli\ntry:\n flows.cli.main()\nfinally:\n print({'torch', 'prefect'} & set(sys.modules))"
        )
        command = [sys.executable, "-c", spy, "verify", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = verify(str(run))
    assert done.returncode == 0 and done.stdout.endswith("is right.\nset()\n"), done.stderr
    flip_unseen(run / "images" / "00001.tar")
    (run / "masks" / "00000.done.json").unlink()
    done = verify(str(run))
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.splitlines() == [
        "images/00001.tar: altered: its checksum is another",
        "masks/00000.done.json: gone, though 00000.tar is there",
        "set()",
    ]
    done = verify(str(run / "nowhere"))
    assert done.returncode == 2 and "there is no run folder" in done.stderr


def test_an_estimate_is_json_for_scripts(whole: Path, profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    app(["estimate", "--run", str(whole), "--json", *as_arguments(changed_settings(profile))], standalone_mode=False)
    lines = json.loads(capsys.readouterr().out)
    assert [line["stage"] for line in lines] == list(STAGES)
    assert lines[0]["records"] == 16 and all(line["seconds_left"] == 0 for line in lines)
    assert all(line["memory"] > 10**7 and line["device_memory"] is None for line in lines)


def test_an_estimate_makes_one_shard_where_there_is_none_and_no_dataset_smaller(
    profile: Profile, run: Path, tmp_path: Path
) -> None:
    def estimated(folder: Path) -> list[int]:
        arguments = as_arguments(changed_settings(profile))
        app(["estimate", "--run", str(folder), *arguments], standalone_mode=False)
        recorded = recorded_profile(folder)
        assert recorded is not None and recorded.dataset == profile.dataset
        return Dataset(profile.dataset, folder).finished()

    (run / "triplets" / "00000.done.json").unlink()  # withdrawn, or of a block that others overtook
    with prefect_server(tmp_path / "server", meanwhile=lambda: None):  # one for both
        assert estimated(run) == [1]
        assert estimated(tmp_path / "new") == [0]
    assert training_step(profile, tmp_path / "new").missing == ("the dataset (1 of 2 shards)",)
