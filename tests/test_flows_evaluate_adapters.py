"""`dreamcache evaluate --adapters` on very small models: adapters of any origin are scored, without a dataset."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from in_process import Said, run_command
from PIL import Image
from test_dreamcache_released import released_tensors
from tiny_profile import as_arguments, save_tiny_adapters, tiny_settings

from dreamcache import AdapterSet
from flows.evaluate_adapters import evaluate_adapters
from flows.evaluation_plans import adapters_folder
from flows.given import Given

pytestmark = pytest.mark.usefixtures("tiny_server")
SETTINGS = {"evaluation.prompts": 1, "sweep.image_scales": [], "sweep.text_scales": []}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_adapters(tmp_path_factory.mktemp("places") / "theirs")


def evaluate(capsys: pytest.CaptureFixture[str], run: Path, adapters: Path | str, *words: str) -> Said:
    settings = as_arguments({**tiny_settings(), **SETTINGS})
    return run_command(capsys, ["evaluate", "--adapters", str(adapters), "--run", str(run), *settings, *words])


def test_they_are_scored_as_a_runs_own(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trained = tmp_path / "empty", tmp_path / "trained"
    said = evaluate(capsys, run, adapters)
    assert said.code == 0 and "evaluation-of-theirs: " in said.out and "adapters - no-adapters" in said.out, said
    assert {path.name for path in run.iterdir()} >= {"evaluation-of-theirs", "real"}
    assert not (run / "triplets").exists() and not (run / "training").exists()
    folder = run / "evaluation-of-theirs"

    shutil.copytree(adapters, adapters_folder(trained))
    with monkeypatch.context() as patched:
        patched.setattr("flows.plans.training_step", lambda *_: SimpleNamespace(changes=list))
        evaluate_adapters(run=str(trained), settings={**tiny_settings(), **SETTINGS, "compare_with": None})
    rows = (folder / "rows.jsonl").read_bytes()
    assert rows == (trained / "evaluation" / "rows.jsonl").read_bytes()
    scores = {variant: set() for variant in ("no-adapters", "adapters", "wrong-reference", "copy-paste")}
    for row in map(json.loads, rows.splitlines()):
        scores[row["variant"]].add(row["dino"])
    assert not scores["adapters"] & (scores["no-adapters"] | scores["wrong-reference"])

    sheet = Image.open(folder / "gallery.jpg").convert("RGB")
    sampled = {path: path.stat().st_mtime_ns for path in folder.glob("images/*/*.tar")}
    said = evaluate(capsys, run, adapters)
    assert said.code == 0 and "To do" not in said.out and f"Gallery: {folder / 'gallery.jpg'}" in said.out
    (folder / "gallery.jpg").unlink()
    assert "gallery.jpg" in evaluate(capsys, run, adapters).out
    assert Image.open(folder / "gallery.jpg").convert("RGB").tobytes() == sheet.tobytes()
    assert sampled == {path: path.stat().st_mtime_ns for path in sampled}, "images were sampled again"


def test_the_authors_file_and_ours_score_alike(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cross_attention-7.pt"
    torch.save(released_tensors(AdapterSet.from_pretrained(adapters)), file)
    found = []
    for place in (adapters, file):
        said = evaluate(capsys, tmp_path / "run", place, "--set", 'evaluation.variants=["adapters"]', "--json")
        assert said.code == 0, said
        found.append(json.loads(said.out))
    assert [Path(one["rows"]).name for one in found] == ["evaluation-of-theirs", "evaluation-of-cross_attention-7"]
    assert found[0]["variants"] == found[1]["variants"]


def test_images_that_were_all_rejected_are_told(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    huge = AdapterSet.from_pretrained(adapters)
    for parameter in huge.parameters():
        parameter.data.fill_(1e30)
    huge.save_pretrained(tmp_path / "huge")
    text = "evaluation-of-huge: all images of adapters were rejected"

    def scored(variants: str) -> Said:
        words = ("--set", "evaluation.subjects=1", "--set", f"evaluation.variants={variants}")
        return evaluate(capsys, tmp_path / "run", tmp_path / "huge", *words)

    said = scored('["adapters"]')
    assert said.code == 1 and text in said.err, said
    caplog.clear()
    said = scored('["no-adapters", "adapters"]')
    assert said.code == 0 and text in caplog.text and "no-adapters" in said.out, said


def test_what_is_wrong_is_one_line(adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = json.loads((adapters / "config.json").read_text()) | {"backbone_identity": "0" * 64}
    shutil.copytree(adapters, tmp_path / "others")
    (tmp_path / "others" / "config.json").write_text(json.dumps(other))
    (tmp_path / "torn.pt").write_bytes(b"torn")
    for place, words, code, text in (
        (tmp_path / "nowhere", (), 1, "adapters: there is no folder"),
        (tmp_path / "others", (), 1, "these adapters belong to the backbone 000000000000"),
        (tmp_path / "torn.pt", (), 1, "torn.pt is no file of tensors"),
        (adapters, ("--images", str(tmp_path)), 2, "one of --images FOLDER, --adapters PLACE, --calibrate"),
        (adapters, ("--name", "../x"), 1, "not made of letters"),
    ):
        said = evaluate(capsys, tmp_path / "run", place, *words)
        assert said.code == code and text in said.err, said


def test_a_name_is_that_of_the_place() -> None:
    assert Given(adapters="owner/adapters").label == "evaluation-of-adapters"
    assert Given(images="peers/elite").label == "evaluation-of-elite"
    assert Given().label == "calibration"
    with pytest.raises(ValueError, match="score one of them at a time"):
        Given(images="a", adapters="b")
