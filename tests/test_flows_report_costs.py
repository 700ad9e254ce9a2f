"""The report's accounts of stages, and of their time and disk: every figure from markers, each in its unit."""

import json
from pathlib import Path

from flows.report_costs import costs
from flows.report_dataset import stage_rows
from shards.markers import FileState, Marker


def marker(records_in: int, records_out: int, seconds: float, size: int) -> Marker:
    rejected = {"too dark": records_in - records_out}
    files = FileState(size - 24, "0" * 64, 0), FileState(24, "0" * 64, 0)
    return Marker("0" * 64, {}, records_in, records_out, rejected, *files, {"seconds": seconds})


MARKERS = {
    "images": [marker(200, 190, 3000.0, 40_000_000), marker(200, 190, 3000.0, 40_000_000)],
    "triplets": [marker(190, 150, 4.5, 10_000_000), marker(190, 150, 4.5, 10_000_000)],
}


def test_a_stage_is_the_sum_of_its_shards() -> None:
    images, triplets = stage_rows(MARKERS)
    assert images == {
        "name": "images", "records_in": 400, "records_out": 380, "shards": 2, "copies": 1, "rejected": 20,
        "seconds": 6000.0, "rate": 400 / 6000,
    }  # fmt: skip
    assert (triplets["records_out"], triplets["rejected"], triplets["seconds"]) == (300, 80, 9.0)


def test_costs_are_those_of_stages_training_and_evaluations(tmp_path: Path) -> None:
    for name, execution, size in (
        ("training", {"seconds": 600.0, "steps": 1200}, 5_000),
        ("evaluation", {"seconds_by_part": {"images": 450.0, "scores": 41.0}}, 2_000_000),
        ("sweep/text-3", {"seconds_by_part": {"images": 100.0}}, 700),
        ("evaluation.0123abcd", {"seconds": 9000.0}, 1),  # set aside: no part of this run
    ):
        (tmp_path / name / "shards").mkdir(parents=True)
        (tmp_path / name / "done.json").write_text(text := json.dumps({"execution": execution}))
        (tmp_path / name / "shards" / "file").write_bytes(bytes(size - len(text)) if size > len(text) else b"")
    found = costs(tmp_path, MARKERS)
    shown = [[row[column] for column in ("name", "time", "share", "each", "disk", "percent")] for row in found["rows"]]
    assert shown == [
        ["images", "100 min", "83%", "15 s", "80 MB", 100.0],
        ["triplets", "9.0 s", "0%", "0.0237 s", "20 MB", 0.1],
        ["training", "10 min", "8%", "0.5 s", "5 kB", 10.0],
        ["evaluation: images", "8 min", "6%", "", "2 MB", 7.5],
        ["evaluation: scores", "41 s", "1%", "", "", 0.7],
        ["sweep/text-3: images", "100 s", "1%", "", "700 B", 1.7],
    ]
    assert found["total"] == {"time": "2.0 h", "disk": "102 MB"}
    assert found["text"].startswith("The sum over all processes of the work itself, loading of models aside: 2 device-")
    # 6,009 s and 100 MB for 300 triplets.
    assert "A triplet took 20 s and 333 kB, rejects included; 400,000, as many" in found["text"]
    assert found["text"].endswith("would take 92.7 d here.")
