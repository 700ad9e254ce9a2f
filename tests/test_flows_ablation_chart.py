"""The picture of a study: where its marks stand, and what their colours say."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flows.ablation_chart import ablation_chart
from flows.ablation_results import read_results

SVG = "{http://www.w3.org/2000/svg}"


def line(label: str, published: float | None = None, **difference: tuple[float, float, float]) -> dict[str, Any]:
    """A line with a score of 0.5 in all metrics and these differences (low, mean, high)."""
    names = ("low", "mean", "high")
    found = {
        metric: {**dict(zip(names, bounds, strict=True)), "clusters": 6, "by_seed": [bounds[1]]}
        for metric, bounds in difference.items()
    }
    scores = {metric: {"mean": 0.5} for metric in ("dino", "clip_i", "clip_t")}
    paper = {"clip_i": published, "clip_t": None}
    return {"name": label, "label": label, "scores": scores, "difference": found, "paper": paper}


def table(*lines: dict[str, Any]) -> dict[str, Any]:
    return {"title": "Layers <5>", "baseline": "default", "lines": lines}


def test_marks_stand_by_their_differences_and_colours_say_what_is_shown() -> None:
    worse = line("mid", 0.75, dino=(-0.2, -0.1, -0.05), clip_i=(-0.02, 0.03, 0.1), clip_t=(0.01, 0.02, 0.03))
    missing = line("all") | {"scores": {}}
    drawn = ElementTree.fromstring(ablation_chart([table(worse, line("default", 0.81), missing)]))
    circles = drawn.findall(f"{SVG}circle")
    assert [circle.get("class") for circle in circles] == ["down", "none", "up"]
    whiskers = [one for one in drawn.findall(f"{SVG}line") if one.get("stroke-width")]
    zero = sorted({float(one.attrib["x1"]) for one in drawn.findall(f"{SVG}line[@class='axis']")})[1::3]
    assert len(whiskers) == len(zero) == 3
    for mark, whisker, middle in zip(circles, whiskers, zero, strict=True):
        low, mean, high = float(whisker.attrib["x1"]), float(mark.attrib["cx"]), float(whisker.attrib["x2"])
        assert low < mean < high and mark.get("cy") == whisker.get("y1")
        assert (mean > middle) == (mark.get("class") != "down")
    # DINO's panel reaches as far as its widest interval, CLIP-I's as its own.
    left, right = float(whiskers[0].attrib["x1"]), float(circles[0].attrib["cx"])
    assert zero[0] - left == pytest.approx(2 * (zero[0] - right), abs=0.2)
    texts = [text.text for text in drawn.findall(f"{SVG}text")]
    assert {"Layers <5>", "mid", "default", "-0.20", "+0.10", "+0.03"} <= set(texts) and "all" not in texts
    assert texts.count("0.500") == 3


def test_the_papers_difference_is_a_diamond_on_the_same_scale() -> None:
    same = line("mid", 0.75, dino=(-0.1, 0, 0.1), clip_i=(-0.1, -0.06, 0.02), clip_t=(-0.1, 0, 0.1))
    drawn = ElementTree.fromstring(ablation_chart([table(same, line("default", 0.81))]))
    (diamond,) = drawn.findall(f"{SVG}path")
    start = float(diamond.attrib["d"].split()[0].removeprefix("M"))
    assert start + 5 == pytest.approx(float(drawn.findall(f"{SVG}circle")[1].attrib["cx"]), abs=0.2)


def test_what_is_unfinished_or_unpaired_is_no_default() -> None:
    unfinished = line("encoder", 0.721) | {"scores": {}}
    unpaired = line("all", 0.795)  # of other seeds than the default's
    near = line("decoder", 0.799, dino=(-0.1, 0, 0.1), clip_i=(-0.02, -0.011, 0.02), clip_t=(-0.1, 0, 0.1))
    drawn = ElementTree.fromstring(ablation_chart([table(unfinished, unpaired, near, line("default", 0.81))]))
    texts = [text.text for text in drawn.findall(f"{SVG}text")]
    assert texts.count("0.500") == 3 and "+0.02" in texts, "the default's scores alone, and a panel of its interval"
    other, diamond = (float(one.attrib["d"].split()[0].removeprefix("M")) for one in drawn.findall(f"{SVG}path"))
    assert diamond + 5 == pytest.approx(float(drawn.findall(f"{SVG}circle")[1].attrib["cx"]), abs=0.2)
    assert other < diamond


def test_results_that_do_not_say_their_defaults_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "ablations").mkdir()
    lines = [line("mid-decoder", 0.81), line("mid", 0.75, clip_i=(-0.1, -0.06, 0.02))]
    tables = [{"name": "layers", "title": "Layers", "lines": lines}]
    (tmp_path / "ablations" / "tables.json").write_text(json.dumps({"tables": tables}))
    found = read_results(tmp_path)
    assert found is not None and ">mid</text>" in ablation_chart(found["tables"])
