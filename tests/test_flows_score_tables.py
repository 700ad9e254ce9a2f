"""Scores as text: real images beside what is published, and which rows of two evaluations are compared."""

import json
from pathlib import Path

import pytest
from test_dreamcache_dreambooth_metrics import make_rows

from flows.score_tables import calibration, calibration_table, compared, comparison_table
from shards.files import json_line


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(map(json_line, rows)))
    return path.parent


def test_a_calibration_says_whether_the_weights_are_the_true_ones(tmp_path: Path) -> None:
    vit = {"model_type": "vit", "hidden_size": 384, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}
    for name, config in (("dino", vit), ("clip", {"model_type": "clip"})):
        write_rows(tmp_path / name / "config.json", [config])
    rows = [row | {"benchmark": "dreambooth", "clip_i": 0.9, "clip_t": None} for row in make_rows("real", 0.627)]
    folder = write_rows(tmp_path / "calibration" / "real.jsonl", [*rows, *rows[:2]])  # of one subject more pairs
    found = calibration(folder, str(tmp_path / "dino"), str(tmp_path / "clip"))
    lines = [line.split("  ") for line in calibration_table(found).splitlines()]
    said = {line[0]: [cell.strip() for cell in line if cell] for line in lines}
    # By subject 0.777, by pair 0.747; published 0.774 and 0.885.
    assert said["DINO"][2:] == ["0.777", "10", "0.774, agrees"] and said["DINO"][1].startswith("0.747 [")
    assert said["CLIP-I"][2:] == ["0.900", "10", "0.885, differs: other weights?"]
    assert said["s3"] == ["s3", "0.927", "0.900"] and "no published value" not in calibration_table(found)
    rows = [row | {"benchmark": "tiny"} for row in rows]
    other = calibration(write_rows(tmp_path / "tiny" / "real.jsonl", rows), str(tmp_path / "dino"), "nowhere")
    assert "no published value belongs to these models" in calibration_table(other)
    assert "agrees" not in calibration_table(other)


def test_the_adapters_are_compared_unless_another_variant_is_named(tmp_path: Path) -> None:
    several = [*make_rows("no-adapters", 0.2), *make_rows("adapters", 0.3), *make_rows("wrong-reference", 0.25)]
    run = write_rows(tmp_path / "run" / "evaluation" / "rows.jsonl", several).parent
    given = write_rows(tmp_path / "given" / "rows.jsonl", make_rows("given", 0.28))

    def dino(*asked: Path | str) -> str:
        found = compared(*asked)  # type: ignore[arg-type]
        heading, *_ = comparison_table(found).splitlines()
        assert heading == f"{found['first']} minus {found['second']}, protocol one-reference"
        return f"{found['first']}: {found['differences']['overall']['dino']['mean']:+.2f}"

    assert dino(run, given) == f"{run} (adapters): +0.02"
    assert dino(given, run) == f"{given} (given): -0.02"
    assert dino(run, given, "wrong-reference") == f"{run} (wrong-reference): -0.03"
    with pytest.raises(ValueError, match="has no adapter among no-adapters, adapters, wrong-reference: name one by"):
        compared(run, given, "adapter")
    rows = [json.loads(line) for line in (given / "rows.jsonl").read_text().splitlines()]
    torn = write_rows(tmp_path / "torn" / "rows.jsonl", [{k: v for k, v in row.items() if k != "case"} for row in rows])
    with pytest.raises(ValueError, match="the rows have no 'case': not the rows of an evaluation"):
        compared(torn, given)
