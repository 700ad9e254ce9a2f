"""`dreamcache evaluate` and `dreamcache compare` on very small models, masks by the dataset's own mask stage."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from in_process import run_command
from PIL import Image
from tiny_datagen import save_tiny_owlvit, save_tiny_sam
from tiny_embedders import save_tiny_clip, save_tiny_dino, write_tiny_benchmark
from tiny_profile import as_arguments

from dreamcache.dreambooth.cases import load_benchmark
from flows.server import prefect_server
from shards.markers import read_marker


class Workplace:
    """Models, a benchmark and two methods' images of it; `say` runs a command and returns its code and what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.run, self.capsys = folder, folder / "run", capsys
        self.settings = {
            "masks.box_model": str(folder / "owlvit"),
            "masks.mask_model": str(folder / "sam"),
            "masks.min_stored_score": 0,
            "dino": str(folder / "dino"),
            "clip": str(folder / "clip"),
            "evaluation.min_box_score": 0,
            "evaluation.images_per_prompt": 2,
        }

    def say(self, *words: str, **settings: object) -> tuple[int, str]:
        arguments = [] if words[0] == "compare" else as_arguments(self.settings | settings)
        if words[0] == "evaluate":
            arguments += ["--run", str(self.run)]
        if "--rows" not in words and words[0] == "evaluate":
            arguments += ["--dataset", str(self.folder / "benchmark")]
        heard = run_command(self.capsys, [*words, *arguments])
        # Bars of the libraries, which here were imported before the command could quiet them, are none of its lines.
        lines = [line for line in heard.err.strip().splitlines() if "Loading weights" not in line and line]
        assert not heard.code or len(lines) == 1, heard.err
        return heard.code, heard.err if heard.code else heard.out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    save_tiny_owlvit(folder / "owlvit")
    save_tiny_sam(folder / "sam")
    save_tiny_dino(folder / "dino")
    save_tiny_clip(folder / "clip")
    benchmark = load_benchmark(write_tiny_benchmark(folder / "benchmark"))
    generator = np.random.default_rng(0)
    for method in ("elite", "other"):
        for case in benchmark.cases(2, prompts=2):
            place = folder / method / case.subject / f"{case.prompt_index:02d}-{case.position}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(place)
    with prefect_server(folder / "server", meanwhile=lambda: None):
        yield folder


@pytest.fixture
def work(made: Path, capsys: pytest.CaptureFixture[str]) -> Workplace:
    return Workplace(made, capsys)


def test_two_methods_on_equal_terms(work: Workplace) -> None:
    code, said = work.say("evaluate", "--images", str(work.folder / "elite"))
    assert code == 0 and "evaluation-of-elite: 20 shards to make: not made yet" in said, said
    assert "MDINO" in said and "diversity" in said and "real against real" in said and "palette shared" in said
    folder = work.run / "evaluation-of-elite"
    marker = read_marker(folder / "masks/given/00000.tar")
    assert marker is not None and marker.recipe["models"].keys() == {"box_model", "mask_model"}
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and all(row["variant"] == "given" and row["seed"] is None for row in rows)
    assert rows[0]["masking"]["models"] == marker.recipe["models"]
    stored, masking = marker.recipe["settings"], rows[0]["masking"]["settings"]
    assert masking["min_region"] == stored["min_region"] and masking["query"] == stored["query"]

    _, again = work.say("evaluate", "--images", str(work.folder / "elite"))
    assert "To do" not in again and again.splitlines()[-3:] == said.splitlines()[-3:]
    _, table = work.say("evaluate", "--rows", str(folder))
    assert table.endswith("the same, to the last digit.\n")
    assert work.say("evaluate", "--images", str(work.folder / "other"))[0] == 0
    _, table = work.say("compare", str(folder), str(work.run / "evaluation-of-other"))
    assert "protocol one-reference" in table and "CLIP-T" in table and "MDINO" in table
    _, said = work.say("compare", str(folder), str(work.run / "evaluation-of-other"), "--json")
    assert json.loads(said)["differences"]["overall"]["clip_t"].keys() >= {"mean", "low", "high"}
    _, said = work.say("evaluate", "--rows", str(folder), "--json")
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(said) == summary | {"as_stored": True, "rows": str(folder)}
    copied = work.folder / "copied"
    shutil.copytree(folder, copied)
    (copied / "summary.json").write_text("{}")
    assert "something else" in work.say("evaluate", "--rows", str(copied))[1]
    every = [{**row, "protocol": "all-references"} for row in rows]
    (copied / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))
    code, said = work.say("compare", str(folder), str(copied))
    assert code == 1 and "two values of protocol, 'one-reference' and 'all-references'" in said
    (copied / "rows.jsonl").write_text('{"key": "a"}\n')
    code, said = work.say("evaluate", "--rows", str(copied))
    assert code == 1 and "not the rows of an evaluation" in said


def test_scores_are_of_the_benchmarks_table_as_it_is(work: Workplace) -> None:
    """Another reference touches no shard of embeddings: those of all real images are there already."""
    table, rows = work.folder / "benchmark" / "subjects.json", work.run / "evaluation-of-elite" / "rows.jsonl"
    assert work.say("evaluate", "--images", str(work.folder / "elite"))[0] == 0
    stood, before = table.read_text(), rows.read_text()
    changed = json.loads(stood)
    first = changed["subjects"][0]
    first["reference"] = {"01.png": "02.png"}[first["reference"]]
    try:
        table.write_text(json.dumps(changed))
        _, said = work.say("evaluate", "--images", str(work.folder / "elite"))
        assert "evaluation-of-elite.inputs.benchmark: " in said and rows.read_text() != before
    finally:
        table.write_text(stood)
    assert work.say("evaluate", "--images", str(work.folder / "elite"))[0] == 0 and rows.read_text() == before


def test_calibration_by_pair_and_by_subject(work: Workplace) -> None:
    code, said = work.say("evaluate", "--calibrate")
    assert code == 0 and "no published value belongs to these models: this is their own bound" in said, said
    assert "by pair" in said and "by subject" in said and "cup_2" in said and "  12" in said
    assert "To do" not in work.say("evaluate", "--calibrate")[1]
    found = json.loads(work.say("evaluate", "--calibrate", "--json")[1])
    assert found["published"] == {} and found["metrics"]["dino"]["count"] == 12


def test_what_is_wrong_is_one_line(work: Workplace) -> None:
    for words, code, text in (
        (("evaluate",), 2, "one of --images FOLDER, --adapters PLACE, --calibrate and --rows FOLDER"),
        (("evaluate", "--images", str(work.folder / "nowhere")), 1, "nowhere: no such folder"),
        (("evaluate", "--images", str(work.folder / "elite"), "--name", "../x"), 1, "not made of letters"),
        (("evaluate", "--rows", str(work.folder / "elite")), 1, "rows.jsonl does not exist"),
        (("compare", str(work.folder), str(work.folder)), 1, "give the folder of a finished evaluation"),
    ):
        assert (found := work.say(*words))[0] == code and text in found[1], found
    torn = shutil.copytree(work.folder / "elite", work.folder / "torn") / "cat" / "01-1.png"
    torn.write_bytes(torn.read_bytes()[:3000])  # its size can still be read
    code, said = work.say("evaluate", "--images", str(work.folder / "torn"))
    assert code == 1 and "cat/01-1.png: not a readable image (image file is truncated" in said
    code, said = work.say("evaluate", "--images", str(work.folder / "elite"), **{"evaluation.images_per_prompt": 3})
    assert code == 1 and "8 images missing, such as cup_0/00-2" in said
    code, said = work.say("evaluate", "--calibrate", dino=str(work.folder / "nothing"))
    assert code == 1 and "nothing: no model there" in said
