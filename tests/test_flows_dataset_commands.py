"""Describing, merging, exporting and inspecting datasets, on small shards that no model made."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset
import yaml
from in_process import run_command
from kill_points import in_a_child
from PIL import Image
from tiny_datagen import tiny_models
from tiny_triplets import tiny_triplet, write_tiny_triplets

from flows import progress
from flows.dataset_commands import export, import_dataset, merge
from flows.describe import FILES, describe
from flows.inspect import statistics_lines
from flows.profiles import load_profile
from flows.report import write_report
from flows.report_dataset import reject_groups, run_markers
from shards.card import dataset_card
from shards.export import export_dataset
from shards.files import read_json_lines, sha256_of
from shards.markers import marker_path, rejects_path
from shards.statistics import triplet_statistics
from shards.triplets import Triplet, read_triplets, triplet_paths, write_triplets

ROOT = Path(__file__).resolve().parents[1]


def described(run: Path) -> dict[str, bytes]:
    return {name: (run / "triplets" / name).read_bytes() for name in FILES}


def test_a_dataset_is_described_once_and_again_when_it_changes(tmp_path: Path) -> None:
    paths = write_tiny_triplets(tmp_path / "run", shards=2, triplets_a_shard=5)
    assert describe(tmp_path / "run") and not describe(tmp_path / "run")
    statistics, index = (json.loads(described(tmp_path / "run")[name]) for name in FILES[:2])
    assert statistics["triplets"] == 10 and statistics["classes"] == {"ball": 5, "disc": 5}
    assert statistics["caption_words"] == {"lowest": 3, "mean": 3.0, "highest": 3, "histogram": {"3": 10}}
    # A disc of half the side covers pi / 16 of the image.
    assert statistics["mask_area"]["mean"] == pytest.approx(0.196, abs=0.01)
    assert sum(statistics["mask_area"]["histogram"].values()) == 10
    assert statistics["stages"] == {"triplets": {"in": 10, "out": 10, "rejected": {}}}
    assert [entry["sha256"] for entry in index["shards"]] == [sha256_of(path) for path in paths]
    write_tiny_triplets(tmp_path / "other", shards=2, triplets_a_shard=5)
    describe(tmp_path / "other")
    assert described(tmp_path / "other") == described(tmp_path / "run")
    (tmp_path / "other" / "triplets" / "index.json").write_text("{}")
    assert describe(tmp_path / "other") and described(tmp_path / "other") == described(tmp_path / "run")
    marker_path(paths[1]).unlink()
    assert describe(tmp_path / "run") and json.loads(described(tmp_path / "run")[FILES[0]])["triplets"] == 5


def test_the_card_names_models_and_their_terms(tmp_path: Path) -> None:
    one = tiny_triplet(0)
    models = {"images.model": "hub:maker/painter@0123", "masks.box_model": "sha256:77"}
    record = {**one.record, "class": "a | <b>\n# c", "models": models}
    path = write_triplets(tmp_path, 0, [Triplet(one.key, one.jpg, one.mask_png, record)], "test")
    statistics = triplet_statistics([path]) | {"stages": {}}
    card = dataset_card(statistics, {"hub:maker/painter@0123": "Some Licence 1.0"})
    assert "| images.model | maker/painter@0123 | 1 | Some Licence 1.0 |" in card
    assert "| masks.box_model | sha256:77 | 1 | not known: see where they come from |" in card
    assert "1 classes: a / &lt;b> # c 1." in card  # a stranger's class writes no markup of its own
    assert "images are made" not in card
    accounts = {"images": {"in": 15, "out": 15, "rejected": {}, "copies": 3}}
    assert "Of each caption 3 images are made. Every record" in dataset_card(statistics | {"stages": accounts}, {})
    assert "- 1K<n<10K\n" in dataset_card(statistics | {"triplets": 1000}, {})
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "*.tar"}]


def test_merging_gives_each_its_key_and_takes_none_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, both = tmp_path / "first", tmp_path / "second", tmp_path / "both"
    write_tiny_triplets(first, shards=2, triplets_a_shard=3)
    # The second holds triplets 3 to 8: the first three of them are the first run's last.
    write_triplets(second, 0, [renamed(tiny_triplet(n), f"x{n}") for n in range(3, 9)], "test")
    merge([first, second], both)
    assert "triplets: 12 in, 9 out; rejected: the same triplet in an earlier run 3" in capsys.readouterr().out
    found = list(read_triplets(triplet_paths(both)))
    assert [one.key for one in found] == [*(f"0-{n:05d}" for n in range(6)), *(f"1-x{n}" for n in range(6, 9))]
    assert [one.jpg for one in found] == [tiny_triplet(n).jpg for n in range(9)]
    rejects = list(read_json_lines(rejects_path(both / "triplets" / "00002.tar")))
    assert [(one["key"], one["matched"]["key"]) for one in rejects] == [(f"1-x{n}", f"0-{n:05d}") for n in (3, 4, 5)]
    (group,) = reject_groups(both, run_markers(both))
    assert group["examples"][0]["text"] == "a yellow disc — like “a yellow disc” (1.00)"
    times = [path.stat().st_mtime_ns for path in triplet_paths(both)]
    marker_path(both / "triplets" / "00002.tar").unlink()  # as if it had been broken off there
    merge([first, second], both)
    now = [path.stat().st_mtime_ns for path in triplet_paths(both)]
    assert now[:2] == times[:2] and now[2] != times[2]
    assert list(read_triplets(triplet_paths(both))) == found
    merge([second], both)
    assert len(list(read_triplets(triplet_paths(both)))) == 6 and len(triplet_paths(both)) == 1
    with pytest.raises(ValueError, match="merge into another folder"):
        merge([both], both)


def test_a_key_too_long_to_merge_is_named_with_the_way_out(tmp_path: Path) -> None:
    write_triplets(tmp_path / "long", 0, [renamed(tiny_triplet(0), "x" * 79)], "test")
    with pytest.raises(ValueError, match="too long to get 0- in front: import it anew from files of shorter names"):
        merge([tmp_path / "long"], tmp_path / "both")


def test_merges_and_imports_replace_no_dataset_of_another_kind(tmp_path: Path) -> None:
    (shard,) = write_tiny_triplets(tmp_path / "one", shards=1, triplets_a_shard=3)
    imported, merged = tmp_path / "imported", tmp_path / "merged"
    import_dataset([shard], imported, "triplets")
    merge([tmp_path / "one"], merged)
    before = [path.read_bytes() for path in triplet_paths(imported) + triplet_paths(merged)]
    with pytest.raises(ValueError, match="holds a dataset that was imported there: merge into another folder"):
        merge([tmp_path / "one"], imported)
    with pytest.raises(ValueError, match="holds a dataset that was merged there: import into a folder of its own"):
        import_dataset([shard], merged, "triplets")
    assert [path.read_bytes() for path in triplet_paths(imported) + triplet_paths(merged)] == before
    import_dataset([shard], imported, "triplets")
    merge([tmp_path / "one", imported], merged)
    assert len(triplet_paths(merged)) == 2


def test_an_import_of_pairs_says_how_far_each_stage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    source.mkdir()
    for number in range(3):
        both = Image.new("RGB", (128, 64))
        for side in range(2):
            both.paste(tiny_triplet(2 * number + side).image, (64 * side, 0))
        both.save(source / f"{number}.png")
        described = {"item": "teapot", "description_0": "a teapot at home", "description_1": "a teapot in snow"}
        (source / f"{number}.json").write_text(json.dumps({"description": described}))
    settings = {"box_model": tiny_models() / "owlvit", "mask_model": tiny_models() / "sam", "min_stored_score": 0}
    gates = {"min_box_score": 0, "min_predicted_iou": 0, "min_area": 0, "max_area": 1, "max_border": 4}
    words = [f"masks.{name}={value}" for name, value in settings.items()]
    words += [f"gates.{name}={value}" for name, value in gates.items()] + ["captions_per_shard=2"]
    seconds = itertools.count(step=11)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    import_dataset([source], run, "pairs", "miniature", words)
    lines = capsys.readouterr().out.splitlines()
    for stage in ("masks", "gates", "triplets"):
        told = [line for line in lines if line.startswith(f"{stage} ")]
        assert told[0] == f"{stage} 1 of 3 shards" and told[1].startswith(f"{stage} 2 of 3 shards, 0.0")
    import_dataset([source], run, "pairs", "miniature", words)
    with pytest.raises(ValueError, match="was imported there"):
        merge([run], run)


def test_a_report_shows_triplets_that_name_no_subject(tmp_path: Path) -> None:
    source, run, one = tmp_path / "source", tmp_path / "run", tiny_triplet(0)
    source.mkdir()
    for part, content in (("jpg", one.jpg), ("mask.png", one.mask_png), ("json", b'{"caption": "a thing of no name"}')):
        (source / f"a.{part}").write_bytes(content)
    import_dataset([source], run, "triplets")
    assert "a thing of no name" in write_report(load_profile("miniature"), run).read_text(encoding="utf-8")


def renamed(triplet: Triplet, key: str) -> Triplet:
    return Triplet(key, triplet.jpg, triplet.mask_png, {**triplet.record, "key": key})


def test_an_export_is_a_dataset_that_strangers_read(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "export"
    paths = write_tiny_triplets(run, shards=2, triplets_a_shard=3)
    describe(run)
    export(run, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["00000.tar", "00001.tar", *sorted(FILES)]
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    pattern = front["configs"][0]["data_files"][0]["path"]
    urls = [str(path) for path in sorted(folder.glob(pattern))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [row["__key__"] for row in read] == [f"{n:05d}" for n in range(6)]
    assert read[0]["json"]["caption"] == "a red disc" and read[0]["jpg"].size == read[0]["mask.png"].size
    time = (folder / "00000.tar").stat().st_mtime_ns
    (folder / "00001.tar").write_bytes(b"torn")
    export(run, folder)
    assert (folder / "00000.tar").stat().st_mtime_ns == time
    assert (folder / "00001.tar").read_bytes() == paths[1].read_bytes()
    marker_path(paths[1]).unlink()
    with pytest.raises(ValueError, match="its card describes other shards than are there"):
        export(run, folder)
    describe(run)
    export(run, folder)
    assert not (folder / "00001.tar").exists()
    (folder / "thesis.doc").write_text("mine")
    with pytest.raises(ValueError, match="holds thesis.doc, which is no part of an exported dataset"):
        export(run, folder)
    with pytest.raises(FileNotFoundError, match="holds no finished triplet shard"):
        export(tmp_path / "nothing", tmp_path / "other")
    (run / "triplets" / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match="has no README.md beside its triplets: let its build come to its end"):
        export(run, tmp_path / "other")


def test_an_export_that_was_killed_has_no_card_and_goes_on(tmp_path: Path) -> None:
    run, folder, log = tmp_path / "run", tmp_path / "export", tmp_path / "points.log"

    def export_and_die() -> None:
        export_dataset(run, folder, lambda done, total: os.kill(os.getpid(), signal.SIGKILL))

    write_tiny_triplets(run, shards=2, triplets_a_shard=3)
    describe(run)
    export(run, folder)
    assert in_a_child(export_and_die, log) == -signal.SIGKILL
    assert (folder / "README.md").is_file(), "nothing was to be copied"
    paths = [write_triplets(run, number, [tiny_triplet(number)], "others") for number in range(2)]
    describe(run)
    assert in_a_child(export_and_die, log) == -signal.SIGKILL
    assert (folder / "00000.tar").read_bytes() == paths[0].read_bytes() and not (folder / "README.md").exists()
    for name in ("00001.tar", "README.md", "index.json"):
        (folder / f"{name}.tmp-1-0a").write_bytes(b"half")
    export(run, folder)
    names = {path.name for path in paths} | {*FILES}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: (run / "triplets" / name).read_bytes() for name in names
    }


def test_a_pull_is_from_a_store_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["runs/x", str(tmp_path)], "runs/x is no URL of a run on an object store, such as s3://bucket/runs/big"),
        (["s3://bucket/x", "s3://bucket/y"], "s3://bucket/y is no local folder"),
    ):
        assert run_command(capsys, ["pull", *words]) == (2, "", f"dreamcache: {said}\n")


def test_a_datasets_counts_are_bars_the_rarest_classes_left_out() -> None:
    counted = {"triplets": 231, "shards": 2, "bytes": 2_540_000, "classes": {f"class {n}": 21 - n for n in range(21)}}
    gates = {"in": 300, "out": 231, "rejected": {"subject too small": 60, "no box": 9}}
    shares = {"0.1": 0, "0.2": 231}
    more = {"stages": {"gates": gates}, "caption_words": {"histogram": {}}, "mask_area": {"histogram": shares}}
    lines = list(statistics_lines(counted | more))
    assert lines[:3] == [
        "231 triplets in 2 shards, 2.5 MB",
        "  gates: 300 in, 231 out; rejected: subject too small 60, no box 9",
        "classes",
    ]
    bars = {line[:10].strip(): (int(line[10:19]), line.count("#")) for line in lines if line.startswith("  class")}
    assert len(bars) == 20 and bars["class 0"] == (21, 40) and bars["class 10"] == (11, 21)
    assert lines[23] == "  ... 1 classes more" and lines[-1] == f"  0.2      231 {'#' * 40}"
    assert lines[-2] == "mask, share of the image", "what does not occur has no line"


def test_the_commands(tmp_path: Path) -> None:
    def dreamcache(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    (shard, *_) = write_tiny_triplets(tmp_path / "one", shards=1, triplets_a_shard=5)
    done = dreamcache("import-dataset", shard, "--layout", "triplets", "--run", tmp_path / "two")
    assert done.returncode == 0 and done.stdout.endswith("triplets: 5 triplets in 1 shards\n"), done.stderr
    done = dreamcache("inspect", tmp_path / "two", "--count", 3)
    assert "5 triplets in 1 shards" in done.stdout and "disc" in done.stdout, done.stderr
    assert done.stdout.endswith(f"Contact sheet: {tmp_path / 'two' / 'contact-sheet.jpg'}\n")
    sheet = Image.open(tmp_path / "two" / "contact-sheet.jpg")
    assert sheet.width > 700 and 500 < sheet.height < 700 and len(sheet.convert("L").getcolors()) > 100
    assert dreamcache("verify", tmp_path / "two").returncode == 0
    shutil.copy(shard, tmp_path / "two" / "triplets" / "00001.tar")
    done = dreamcache("verify", tmp_path / "two")
    assert (done.returncode, done.stdout) == (1, "triplets/00001.done.json: gone, though 00001.tar is there\n")
    done = dreamcache("import-dataset", tmp_path / "nowhere", "--layout", "authors", "--run", tmp_path / "three")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "there is no such folder or tar" in done.stderr
    assert dreamcache("import-dataset", shard, "--layout", "auhtors", "--run", tmp_path / "three").returncode == 2
