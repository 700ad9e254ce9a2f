"""The report's pictures of a small evaluation: references as they are scored, and commands for any adapters."""

import io
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from in_process import run_command
from PIL import Image
from test_dreamcache_adapters import moved_adapters
from tiny_profile import tiny_settings

from dreamcache import load_backbone
from dreamcache.dreambooth.cases import load_benchmark
from flows.evaluate_adapters import evaluate_adapters
from flows.evaluation_plans import adapters_folder
from flows.gallery import gallery_sheet
from flows.pictures import from_data_uri
from flows.profiles import Profile, load_profile
from flows.report_attention import attention
from flows.report_pictures import extremes, gallery
from shards.files import read_json_lines, read_tar_records

pytestmark = pytest.mark.usefixtures("tiny_server")
Made = tuple[Profile, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """An evaluation of adapters that read the noun, on references with masks beside them that are cut out of black."""
    folder = tmp_path_factory.mktemp("pictures")
    benchmark = shutil.copytree(tiny_settings()["benchmark"], folder / "benchmark")
    for subject in load_benchmark(benchmark).subjects:
        mask = subject.mask(subject.reference)
        assert mask is not None
        cutout = Image.new("RGBA", (48, 48))
        cutout.paste(Image.open(subject.reference), mask=Image.open(mask))
        cutout.save(subject.reference)
    settings = {
        **tiny_settings(), "benchmark": str(benchmark), "compare_with": None, "evaluation.prompts": 1,
        "evaluation.masked_metrics": False, "sweep.image_scales": [], "sweep.text_scales": [],
    }  # fmt: skip
    backbone = load_backbone(settings["backbone"])
    adapters = moved_adapters(backbone.unet, cache_prompt="a photo of a {subject}")
    adapters.backbone_identity = backbone.identity
    adapters.save_pretrained(adapters_folder(folder / "run"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("flows.plans.training_step", lambda *_: SimpleNamespace(changes=list))
        evaluate_adapters(run=str(folder / "run"), settings=settings)
        yield load_profile("miniature", settings), folder / "run"


def test_commands_make_pictures_again_of_adapters_that_read_the_noun(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = gallery(*made)
    assert shown is not None
    monkeypatch.chdir(tmp_path)
    commands = dict(part.splitlines() for part in shown["rows"][0]["again"].split("\n\n"))
    for label, stored in (("just trained", "adapters"), ("just trained, wrong reference", "wrong-reference")):
        words = shlex.split(commands[f"# {label}"])
        said = run_command(capsys, words[1:])
        assert said.code == 0, said.err
        ((_, parts),) = read_tar_records(made[1] / "evaluation" / "images" / stored / "00000.tar")
        (again,) = Path(words[words.index("--out") + 1]).glob("00-*.png")
        difference = np.asarray(Image.open(again), dtype=int) - np.asarray(Image.open(io.BytesIO(parts["png"])))
        assert np.abs(difference).max() <= 2


def test_the_extremes_are_the_best_and_the_worst_case_of_a_subject(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> Iterator[dict[str, Any]]:
        for row in read_json_lines(path):  # here a subject has but one
            yield from (row, row | {"dino": row["dino"] / 2})

    monkeypatch.setattr("flows.report_pictures.read_json_lines", read)
    scored: dict[str, list[float]] = {}
    for row in read(made[1] / "evaluation" / "rows.jsonl"):
        if row["variant"] == "adapters":
            scored.setdefault(row["subject"], []).append(row["dino"])
    most, least = extremes(*made)
    assert "Most" in most["title"] and "Least" in least["title"]
    best, worst = (sorted((pick(dino), name) for name, dino in scored.items()) for pick in (max, min))
    assert [(card["dino"], card["subject"]) for card in most["cards"]] == best[:1:-1]
    assert [(card["dino"], card["subject"]) for card in least["cards"]] == worst[:2]


def test_the_attention_told_is_the_mean_of_pictures_and_layers(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, layers = Random(0), list[dict[str, float]]()

    def read(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
        for key, parts in read_tar_records(path):
            record = json.loads(parts["json"])
            for layer in record["layers"]:  # these adapters have learned nothing: all of theirs are alike
                layer |= {"attention": shares.random(), "area": shares.random() / 2}
            layers.extend(record["layers"])
            yield key, parts | {"json": json.dumps(record).encode()}

    monkeypatch.setattr("flows.report_attention.read_tar_records", read)
    maps = attention(*made)
    given, area = (sum(layer[name] for layer in layers) / len(layers) for name in ("attention", "area"))
    assert maps is not None and f"gets {given:.0%} of their attention, on {area:.0%} of the area" in maps["text"]


def test_references_are_shown_as_they_are_scored(made: Made) -> None:
    rows, maps, cards = gallery(*made), attention(*made), [card for part in extremes(*made) for card in part["cards"]]
    assert rows is not None and maps is not None and cards
    for part in (rows["rows"], maps["rows"], cards):
        for row in part:
            assert np.asarray(from_data_uri(row["reference"]))[0, 0].min() > 240, "on white"
    sheet = gallery_sheet(*made, "evaluation", 2, 0)
    assert sheet.getpixel((128 + 6, 128 // 3 + 2)) == (255, 255, 255)
