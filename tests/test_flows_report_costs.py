"""The report's accounts of stages, and of their time and disk: every figure from markers, each in its unit."""

import json
import shlex
from pathlib import Path

from flows.profiles import load_profile
from flows.report import _command, _figures
from flows.report_costs import costs
from flows.report_dataset import stage_rows
from flows.settings import parse_settings
from shards.markers import FileState, Marker


def marker(records_in: int, records_out: int, seconds: float, size: int) -> Marker:
    rejected = {"too dark": records_in - records_out}
    files = FileState(size - size // 4, "0" * 64, 0), FileState(size // 4, "0" * 64, 0)
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


def test_the_figures_at_the_top_are_what_came_out() -> None:
    dino = {"value": "0.253", "label": "DINO, just trained"}
    assert _figures(MARKERS, {"steps": 1200}, {"headline": [dino]}) == [
        {"value": "380", "label": "images"},
        {"value": "300", "label": "triplets"},
        {"value": "1,200", "label": "training steps"},
        dino,
    ]
    assert [figure["label"] for figure in _figures(MARKERS, None, None)] == ["images", "triplets"]


def test_the_reports_command_has_the_runs_settings() -> None:
    settings = {"images.guidance_scale": 5.0, "benchmark": "my photos/dog's", "evaluation.subjects": 3}
    profile = load_profile("full", settings | {"sweep.image_scales": [0.4, 1.0], "target_triplets": None, "shards": 2})
    words = shlex.split(_command("run", profile, Path("runs/my run")))
    assert words[:6] == ["dreamcache", "run", "--profile", "full", "--run", "runs/my run"]
    assert set(words[6::2]) == {"--set"} and load_profile("full", parse_settings(words[7::2])) == profile
