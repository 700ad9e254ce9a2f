"""Curves as SVG: up is more, right is later, axes in round numbers, and what is not finite is left out."""

import math
from xml.etree import ElementTree

from flows.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, line_chart, running_mean

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*lines: Line) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(lines, "step", "loss").replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def test_points_stand_by_their_values_and_axes_are_labelled() -> None:
    page = drawn(Line("held & out", [(0, 0.12), (50, math.nan), (105, 0.47)], "right", ["a", "b", "c"]))
    (curve,) = page.findall(f"{SVG}polyline")
    assert curve.findtext(f"{SVG}title") == "held & out"
    (x_first, y_first), (x_last, y_last) = (map(float, point.split(",")) for point in curve.attrib["points"].split())
    assert (x_first, x_last) == (LEFT, WIDTH - RIGHT) and TOP < y_last < y_first < HEIGHT
    ticks = [(text.text, float(text.attrib["y"]) - 4) for text in page.findall(f"{SVG}text[@text-anchor='end']")]
    assert [text for text, _ in ticks] == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    at = dict(ticks)
    share = (at["0.1"] - y_first) / (at["0.1"] - at["0.5"])  # of the way from 0.1 to 0.5
    assert abs(share - 0.05) < 0.01 and abs(y_last - at["0.5"]) < abs(at["0.4"] - y_last)
    texts = [text.text for text in page.findall(f"{SVG}text")]
    assert {"0", "20", "100", "step", "held & out", "a"} <= set(texts) and "120" not in texts
    assert len(page.findall(f"{SVG}circle")) == 2


def test_labels_of_curves_that_end_together_are_set_apart() -> None:
    page = drawn(*(Line(name, [(0, 1), (1, 2 + number / 1000)], name) for number, name in enumerate("abc")))
    ends = {text.text: float(text.attrib["y"]) for text in page.findall(f"{SVG}text") if text.text in ("a", "b", "c")}
    assert ends["a"] - ends["b"] >= 13.9 and ends["b"] - ends["c"] >= 13.9, "in the order of the curves"


def test_nothing_finite_is_no_chart() -> None:
    assert line_chart([Line("a", [(0, math.nan)], "right"), Line("b", [], "wrong")], "step", "loss") == ""
    assert len(drawn(Line("a", [(3, 2)], "right"), Line("b", [], "wrong")).findall(f"{SVG}polyline")) == 1


def test_a_running_mean_is_of_the_last_values() -> None:
    assert running_mean([4, 2, 6, 8], 2) == [4, 3, 4, 7]
