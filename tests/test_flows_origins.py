"""Datasets that came into a folder ready made: no build takes their place, and what was exported comes back."""

from pathlib import Path

import pytest
from in_process import run_command
from tiny_triplets import write_tiny_triplets

from flows.build_dataset import build_dataset
from flows.dataset_commands import export, import_dataset, merge
from flows.describe import describe
from shards.triplets import read_triplets, triplet_paths


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    write_tiny_triplets(tmp_path / "run", shards=2, triplets_a_shard=3)
    describe(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "export")
    return tmp_path / "export"


def test_an_exported_folder_comes_back_whole(exported: Path, tmp_path: Path) -> None:
    import_dataset([exported], tmp_path / "back", "triplets")
    before, after = (list(read_triplets(triplet_paths(tmp_path / name))) for name in ("run", "back"))
    assert [(one.key, one.jpg, one.caption) for one in after] == [(one.key, one.jpg, one.caption) for one in before]


def test_an_import_of_nothing_is_an_error_and_no_dataset(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "back"
    words = ["import-dataset", str(exported), "--layout", "authors", "--run", str(run)]
    code, _, err = run_command(capsys, words)
    assert code == 1 and "nothing could be taken by the layout authors: no part of the layout 5; " in err
    assert (run / "triplets" / "00000.rejects.jsonl").read_text().count("no part of the layout") == 5
    with pytest.raises(FileNotFoundError, match="holds no finished triplet shard"):
        triplet_paths(run)
    import_dataset([exported], run, "triplets")
    assert len(list(read_triplets(triplet_paths(run)))) == 6


@pytest.mark.parametrize("how", ["imported", "merged"])
def test_no_build_takes_the_place_of_what_was_brought(
    how: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "brought"
    if how == "imported":
        import_dataset([exported], run, "triplets")
    else:
        merge([tmp_path / "run"], run)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words in (["run", "--dry-run"], ["build-dataset", "--dry-run"], ["build-dataset"], ["run"], ["estimate"]):
        code, out, err = run_command(capsys, [*words, "--run", str(run)])
        assert (code, out) == (1, "") and f"holds a dataset that was {how} there: train-adapters" in err
    with pytest.raises(ValueError, match="a build needs a folder of its own"):
        build_dataset.fn("miniature", str(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == {
        path: content for path, content in before.items() if path.name != ".lock"
    }
