"""The report's scores from made-up rows: every number in its place, hard subjects apart, and the sweep's chart."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, FileSystemLoader
from test_dreamcache_dreambooth_metrics import make_rows
from tiny_triplets import write_tiny_triplets

from dreamcache.dreambooth.scoring import write_results
from dreamcache.dreambooth.summary import summarize
from flows import report_comparison, report_scores, score_tables
from flows.profiles import load_profile
from flows.report import write_report
from shards.files import read_json_lines

PROFILE = load_profile("miniature", {"sweep.image_scales": [2.0, 0.5], "sweep.text_scales": [3.0]})


def write(run: Path, name: str, rows: list[dict], seed: int = 0) -> None:
    real = [row | {"dino": 0.9, "clip_i": 0.95, "clip_t": None, "mdino": None} for row in rows[:4]]
    (run / name).mkdir(parents=True)
    write_results(run / name, rows, real, summarize(rows, real))
    (run / name / "done.json").write_text(json.dumps({"recipe": {"settings": {"seed": seed}}}))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    own = [row for variant, dino in (("no-adapters", 0.2), ("adapters", 0.3)) for row in make_rows(variant, dino)]
    masking = {"models": {}, "settings": {"background": "white", "min_box_score": 0.3}}
    masked = [row | {"mdino": None if row["live"] else 0.4, "masking": masking} for row in own]
    write(folder, "evaluation", masked)
    write(folder, "evaluation-of-elite", [row | {"seed": None} for row in make_rows("given", 0.25)])
    theirs = [row for kind, dino in (("adapters", 0.28), ("no-adapters", 0.2)) for row in make_rows(kind, dino)]
    write(folder, "evaluation-of-theirs", [*theirs, *make_rows("wrong-reference", 0.22)])
    for name, dino in (("image-0.5", 0.31), ("image-2", 0.35), ("text-3", 0.36)):
        write(folder, f"sweep/{name}", make_rows("adapters", dino))
    return folder


@pytest.fixture
def run(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    are_current(monkeypatch, "evaluation", *(f"sweep/{point}" for point in PROFILE.sweep.points()))
    return Path(shutil.copytree(written, tmp_path / "run"))


def are_current(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for part in (report_scores, report_comparison):
        monkeypatch.setattr(part, "current_evaluations", lambda profile, run: [(name, None) for name in names])


def rendered(**parts: Any) -> str:
    template = Environment(loader=FileSystemLoader(Path(report_scores.__file__).parent)).get_template("report.html")
    return template.render(costs={"rows": [], "total": {}}, **parts)


def test_one_table_of_all_and_one_of_hard_subjects(run: Path) -> None:
    found = report_scores.scores(PROFILE, run)
    assert found is not None and found["metrics"] == ["DINO", "CLIP-I", "CLIP-T", "MDINO"]
    assert "on white, where it was found with a box score of at least 0.3: in 12 of 16 images" in found["text"]
    everyone, hard = found["tables"]
    theirs = ["theirs", "theirs, wrong reference"]  # what is there without adapters is the run's own
    labels = ["No adapters", "Adapters just trained", "elite", *theirs, "Real against real"]
    assert [row["label"] for row in everyone["rows"]] == [row["label"] for row in hard["rows"]] == labels
    dino = [[row["cells"][0]["value"] for row in table["rows"]] for table in (everyone, hard)]
    assert dino[0] == ["0.350", "0.450", "0.400", "0.430", "0.370", "0.900"]
    assert dino[1] == ["0.250", "0.350", "0.300", "0.330", "0.270", "0.900"]
    assert [row["cells"][3]["value"] for row in everyone["rows"]] == ["0.400", "0.400", "", "", "", ""]
    differences = {row["label"]: row["cells"][0] for row in everyone["differences"]}
    assert differences == {
        "adapters - no-adapters": {"value": "+0.100", "interval": "[+0.100, +0.100]"},
        "adapters - elite": {"value": "+0.050", "interval": "[+0.050, +0.050]"},
        "adapters - theirs": {"value": "+0.020", "interval": "[+0.020, +0.020]"},
    }
    by_subject, by_prompt = found["breakdowns"]
    assert by_subject["rows"][3] == {"label": "s3", "cells": ["0.600", "0.500", "0.250", ""]}
    assert [row["label"] for row in by_prompt["rows"]][:2] == ["object-00: a … 0", "object-01: a … 1"]
    notes = {row["label"]: row["note"] for row in everyone["rows"]}
    for note in notes.values():
        assert len(re.findall(r"\.(?: |$)", note)) == 2, "what it says, in two sentences"
    change = "+0.100 [+0.100, +0.100], of {} subjects, too few to tell"
    gain = f"DINO against no adapters is {change.format(4)} (on hard subjects {change.format(2)})"
    assert notes["Adapters just trained"].endswith(f" {gain}.")
    assert "DINO 0.350 (0.250 on hard subjects) is what any image" in notes["No adapters"]


def test_committed_adapters_and_points_of_the_sweep_are_shown_where_they_are_up_to_date(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for kind, dino in (("adapters", 0.27), ("wrong-reference", 0.21)) for row in make_rows(kind, dino)]
    write(run, "evaluation-compared", rows)
    outdated = report_scores.scores(PROFILE, run)
    assert outdated is not None and "Committed" not in rendered(scores=outdated)
    are_current(monkeypatch, "evaluation", "evaluation-compared", "sweep/image-2")
    found, compared = report_scores.scores(PROFILE, run), report_comparison.comparison(PROFILE, run)
    assert found is not None and compared is not None
    shown, differences = (
        {row["label"]: row["cells"][0]["value"] for row in found["tables"][0][part]} for part in ("rows", "differences")
    )
    committed = ["Committed adapters", "Committed adapters, wrong reference", "Adapters just trained"]
    assert [shown[label] for label in committed] == ["0.420", "0.360", "0.450"]
    labels = ["adapters - wrong-reference", "adapters - no-adapters", "wrong-reference - no-adapters"]
    assert [differences[f"committed {label}"] for label in labels] == ["+0.060", "+0.070", "+0.010"]
    methods = {row["method"]: row["cells"][0] for row in compared["paper"]["rows"]}
    assert methods["This run: committed adapters"] == "0.420" and "Committed adapters" in compared["tradeoff"]
    swept = report_scores.sweep(PROFILE, run)
    assert swept is not None and [row["label"] for row in swept["rows"]] == ["image scale 2"]


def test_a_run_without_scored_adapters_stands_beside_what_is_given(run: Path) -> None:
    rows = [row for row in read_json_lines(run / "evaluation" / "rows.jsonl") if row["variant"] == "no-adapters"]
    shutil.rmtree(run / "evaluation")
    write(run, "evaluation", rows)
    found = report_scores.scores(PROFILE, run)
    assert found is not None and found["headline"] == [] and found["breakdowns"] == []
    labels = ["No adapters", "elite", "theirs", "theirs, wrong reference", "Real against real"]
    assert [row["label"] for row in found["tables"][0]["rows"]] == labels and found["tables"][0]["differences"] == []
    assert report_comparison.comparison(PROFILE, run) is not None


def test_what_is_scored_otherwise_is_left_out_and_named(run: Path) -> None:
    write(run, "evaluation-of-every", make_rows("given", 0.5, "all-references"))
    models = {"dino": "x" * 64, "clip": "c" * 64}
    write(run, "evaluation-of-others", make_rows("adapters", 0.5, models=models, digests="folder"))
    grey = {"models": {}, "settings": {"background": "grey", "min_box_score": 0.3}}
    write(run, "evaluation-of-grey", make_rows("given", 0.28, masking=grey, mdino=0.7))
    found = report_scores.scores(PROFILE, run)
    assert found is not None
    rows = {row["label"]: [cell["value"] for cell in row["cells"]] for row in found["tables"][0]["rows"]}
    assert rows.keys().isdisjoint({"every", "others"}) and rows["grey"] == ["0.430", "0.500", "0.250", ""]
    assert {row["label"] for row in found["tables"][0]["differences"]} == {
        "adapters - no-adapters", "adapters - elite", "adapters - grey", "adapters - theirs",
    }  # fmt: skip
    said = "every (other protocol); MDINO of grey (other masks or models); others (other digests, dino model)"
    assert found["left_out"] == f"Left out, since they do not compare with the run's: {said}."
    assert said in rendered(scores=found)


def test_images_of_another_seed_are_no_pairs_and_are_named(run: Path) -> None:
    write(run, "evaluation-of-later", [row | {"seed": None} for row in make_rows("given", 0.25)], seed=5)
    found = report_scores.scores(PROFILE, run)
    assert found is not None and "later" in [row["label"] for row in found["tables"][0]["rows"]]
    assert "adapters - later" not in [row["label"] for row in found["tables"][0]["differences"]]
    assert "the difference from later (other seeds)" in found["left_out"]


def test_scores_of_other_cases_say_of_how_many(run: Path) -> None:
    write(run, "evaluation-of-few", [row for row in make_rows("given", 0.25) if row["subject"] in ("s0", "s1")])
    strange = {"prompt": "a cup in a dream", "case": "s0-9-0", "prompt_index": 9}
    write(run, "evaluation-of-strange", [row | strange for row in make_rows("given", 0.25)[:1]])
    found = report_scores.scores(PROFILE, run)
    assert found is not None
    labels = [row["label"] for row in found["tables"][0]["rows"]]
    assert {"few (2 subjects, 4 images)", "strange (1 subjects, 1 images)", "elite"} <= set(labels)
    assert "the difference from strange (other cases)" in found["left_out"]
    assert "adapters - few" in [row["label"] for row in found["tables"][0]["differences"]]


def test_images_without_a_score_are_counted_where_they_lack(run: Path) -> None:
    rows = list(read_json_lines(run / "evaluation" / "rows.jsonl"))
    copied = [row | {"variant": "copy-paste"} for row in rows if row["variant"] == "adapters"]
    rows = [row | {"dino": row["dino"] + 0.1 * row["prompt_index"]} for row in rows]
    kept = [row for row in rows if (row["variant"], row["case"]) != ("adapters", "s3-1-0")]  # it was black
    shutil.rmtree(run / "evaluation")
    write(run, "evaluation", [*kept, *copied])
    found, scores = report_comparison.comparison(PROFILE, run), report_scores.scores(PROFILE, run)
    assert found is not None and scores is not None
    counts = {row["method"]: row["protocol"].rpartition(", ")[2] for row in found["paper"]["rows"] if row["ours"]}
    assert counts["This run: adapters just trained"] == "7 images" and counts["This run: no adapters"] == "8 images"
    line = next(line for line in found["subjects"]["lines"] if line["subject"] == "s3")
    assert line["gain"] == pytest.approx(0.1) and line["plain"] == pytest.approx(0.5)
    assert "in 12 of 15 images" in scores["text"]  # none of the copies, nor of the live subject's


def test_a_note_says_no_more_than_its_interval() -> None:
    def said(*changes: tuple[float, float | None, float | None], subjects: int = 6, palettes: int | None = None) -> str:
        kinds = {"overall": {"dino": {"mean": 0.5}}}
        numbers = {"groups": subjects, "clusters": palettes or subjects}
        differences = {
            kind: {"dino": {"mean": mean, "low": low, "high": high, **numbers}}
            for kind, (mean, low, high) in zip(("overall", "palette_shared"), changes, strict=False)
        }
        summary = {
            "variants": {"wrong-reference": kinds},
            "differences": {"wrong-reference - no-adapters": differences},
        }
        found = score_tables.notes(summary | {"real_against_real": {}})
        assert found.keys() == {"wrong-reference"}
        return found["wrong-reference"].partition("no adapters is ")[2]

    assert said((0.02, -0.01, 0.05), (-0.03, -0.04, -0.02)).startswith(
        "+0.020 [-0.010, +0.050], no difference shown (on hard subjects -0.030 [-0.040, -0.020], less): "
    )
    assert said((0.02, 0.01, 0.03)).startswith("+0.020 [+0.010, +0.030], more: ")
    assert said((0.0003, 0.0001, 0.0004)).startswith("+0.000 [+0.000, +0.000], no difference shown: ")
    assert said((0.02, 0.01, 0.03), subjects=5).startswith("+0.020 [+0.010, +0.030], of 5 subjects, too few to tell: ")
    assert "of 8 subjects of 5 palettes, too few to tell: " in said((0.02, 0.01, 0.03), subjects=8, palettes=5)
    assert said((0.02, None, None), subjects=1).startswith("+0.020, of one subject alone: ")
    alone = {"variants": {"adapters": {"overall": {"dino": {"mean": 0.5}}}}, "differences": {}, "real_against_real": {}}
    assert score_tables.notes(alone) == {"adapters": "Shown the subject's reference. DINO 0.500."}


def test_a_run_stands_beside_the_paper_and_says_whether_they_compare(run: Path) -> None:
    found = report_comparison.comparison(PROFILE, run)
    assert found is not None
    rows = {(row["method"], row["backbone"]): row for row in found["paper"]["rows"]}
    ours = rows["This run: adapters just trained", "the miniature"]
    assert ours["cells"] == ["0.450", "0.500", "0.250"] and ours["references"] == "1"
    assert ours["protocol"] == "tiny, one-reference, 4 subjects, 8 images"
    assert rows["This run: no adapters", "the miniature"]["references"] == ""
    assert rows["DreamCache", "SD 1.5"]["cells"] == ["0.713", "0.810", "0.298"]
    assert rows["DreamCache", "SD 2.1"]["cells"] == ["0.767", "0.816", "0.301"] and len(rows) == 2 + 18
    assert "not with the paper's" in found["paper"]["text"]


def test_subjects_come_with_intervals_beside_no_adapters(run: Path) -> None:
    rows = list(read_json_lines(run / "evaluation" / "rows.jsonl"))
    apart = [row | {"dino": row["dino"] + 0.1 * row["prompt_index"]} for row in rows]
    shutil.rmtree(run / "evaluation")
    write(run, "evaluation", apart)
    found = report_comparison.comparison(PROFILE, run)
    assert found is not None
    subjects = found["subjects"]
    assert [line["subject"] for line in subjects["lines"]] == ["s3", "s2", "s1", "s0"]
    best = subjects["lines"][0]
    assert [round(best[name], 3) for name in ("low", "mean", "high", "plain", "gain")] == [0.6, 0.65, 0.7, 0.55, 0.1]
    assert "ahead for 4 of 4" in subjects["text"] and "real against real, 0.900" in subjects["text"]
    assert (subjects["least"], subjects["most"], best["at"]["mean"]) == (0.0, 0.9, round(100 * 0.65 / 0.9, 2))
    assert found["tradeoff"].count('<circle class="dots"') == 4
    assert "Adapters just trained" in found["tradeoff"] and "Copied" not in found["tradeoff"]


def test_a_sweep_is_a_chart_of_its_points(run: Path) -> None:
    found = report_scores.sweep(PROFILE, run)
    assert found is not None
    assert [row["label"] for row in found["rows"]] == ["image scale 0.5", "image scale 2", "text scale 3"]
    assert [row["cells"][0]["value"] for row in found["rows"]] == ["0.460", "0.500", "0.510"]
    assert found["chart"].count("<circle") == 3
    assert [found["chart"].count(f">{mark}</text>") > 0 for mark in ("0.5", "2", "3")] == [True] * 3
    shown = report_scores.scores(PROFILE, run)
    assert shown is not None and shown["left_out"] == ""
    page = rendered(scores=shown, sweep=found, comparison=report_comparison.comparison(PROFILE, run))
    assert "Hard subjects" in page and "Sweep of the scales" in page and "image scale 0.5" in page
    assert "SuTI" in page and 'style="left:' in page
    assert report_scores.sweep(load_profile("miniature"), run) is None
    joint = load_profile("miniature", {"evaluation.sampling.guidance": "joint", "sweep.text_scales": [3.0]})
    of_joint = report_scores.sweep(joint, run)
    assert of_joint is not None and "image scale" in found["text"] and "image scale" not in of_joint["text"]


def test_joint_guidance_is_reported_by_its_one_scale(tmp_path: Path) -> None:
    write_tiny_triplets(tmp_path)
    for guidance, said in (
        ("joint", "joint guidance, scale 5, "),
        ("combined", "combined guidance, text 5, reference 4, "),
    ):
        page = write_report(load_profile("miniature", {"evaluation.sampling.guidance": guidance}), tmp_path)
        assert said in page.read_text()


def test_points_change_one_scale_and_nothing_else() -> None:
    points = PROFILE.sweep.points()
    assert points == {
        "image-2": ("image_guidance_scale", 2.0),
        "image-0.5": ("image_guidance_scale", 0.5),
        "text-3": ("guidance_scale", 3.0),
    }
    config = PROFILE.sweep.configured(PROFILE.evaluation, "text-3")
    changed = json.loads(config.sampling.model_dump_json()).items() ^ PROFILE.evaluation.sampling.model_dump().items()
    assert changed == {("guidance_scale", 3.0), ("guidance_scale", PROFILE.evaluation.sampling.guidance_scale)}
    assert (config.variants, config.images_per_prompt, config.subjects, config.prompts) == (("adapters",), 1, 8, 5)
    assert config.seed == PROFILE.evaluation.seed and config.protocol == PROFILE.evaluation.protocol
