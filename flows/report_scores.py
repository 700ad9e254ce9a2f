"""The report's part on scores: every variant with its bounds and intervals, differences, and the sweep of scales."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamcache.dreambooth.scoring import ROWS, SUMMARY
from dreamcache.dreambooth.summary import METRICS, Row, compare, incomparable, prompt_name, scored_by
from flows.charts import Line, line_chart
from flows.evaluation_plans import COMPARED, SWEEP, TRAINED
from flows.given import GIVEN
from flows.profiles import Profile
from flows.report_training import current_evaluations
from flows.score_tables import COMMITTED, METRIC_NAMES, REAL, ROLES, notes
from shards.files import read_json_lines

Kinds = dict[str, Any]
TABLES = {"overall": "All subjects", "palette_shared": "Hard subjects, which share their palette with another"}


def scores(profile: Profile, run: Path) -> dict[str, Any] | None:
    """The tables of scores with 95% intervals, the bounds on both sides, and paired differences."""
    current = [name for name, _ in current_evaluations(profile, run)]
    if TRAINED not in current:
        return None
    summary = _summary(run, TRAINED)
    own = list(read_json_lines(run / TRAINED / ROWS))
    said = notes(summary)
    lines = [(ROLES[variant][0], said[variant], kinds) for variant, kinds in summary["variants"].items()]
    differences = list(summary["differences"].items())
    if COMPARED in current:
        compared, committed = _summary(run, COMPARED), list(read_json_lines(run / COMPARED / ROWS))
        for first in compared["variants"]:
            if found := _difference(committed, first, own, "no-adapters"):
                compared["differences"][f"{first} - no-adapters"] = found
        of_committed = notes(compared)
        lines += [(COMMITTED[name], of_committed[name], kinds) for name, kinds in compared["variants"].items()]
        differences += [(f"committed {label}", kinds) for label, kinds in compared["differences"].items()]
    given, against_given, left_out = _given(run, own, profile.evaluation.seed)
    lines += given
    differences += against_given
    lines.append((ROLES[REAL][0], said.get(REAL, ""), summary["real_against_real"]))
    differences = [(label, kinds) for label, kinds in differences if kinds]
    metrics = [metric for metric in METRICS if any(metric in kinds.get("overall", {}) for *_, kinds in lines)]
    number = next(iter(summary["variants"].values()))["overall"]["dino"]["groups"]
    adapters = summary["variants"].get("adapters", {}).get("overall")
    headline = [
        {"value": f"{adapters[metric]['mean']:.3f}", "label": f"{METRIC_NAMES[metric]}, just trained"}
        for metric in (("dino", "clip_t") if adapters else ())
    ]
    return {
        "text": f"Benchmark {summary['benchmark']}, {number} subjects never seen in training, "
        f"{summary['images']} images; protocol {summary['protocol']}. In brackets: 95% intervals, "
        f"bootstrapped over subjects, those of one palette together.{_masking(summary)}",
        "metrics": [METRIC_NAMES[metric] for metric in metrics],
        "tables": [
            {
                "title": title,
                "rows": [
                    _row(label, note if kind == "overall" else "", kinds[kind], metrics)
                    for label, note, kinds in lines
                    if kind in kinds
                ],
                "differences": [
                    {"label": label, "cells": _cells(kinds[kind], metrics, signed=True)}
                    for label, kinds in differences
                    if kind in kinds
                ],
            }
            for kind, title in TABLES.items()
            if any(kind in kinds for *_, kinds in lines)
        ],
        "left_out": f"Left out, since they do not compare with the run's: {'; '.join(left_out)}." if left_out else "",
        "breakdowns": _breakdowns(summary["variants"], own, metrics),
        "headline": headline,
    }


def sweep(profile: Profile, run: Path) -> dict[str, Any] | None:
    """Likeness against fidelity to the prompt over the scales that were swept (paper Fig. S2); None without any."""
    current = {name for name, _ in current_evaluations(profile, run)}
    lines, rows = [], []
    for kind, style in (("image", "right"), ("text", "wrong")):
        points = []
        for point, (setting, value) in profile.sweep.points().items():
            if setting.startswith("image") == (kind == "image") and f"{SWEEP}{point}" in current:
                overall = _summary(run, f"{SWEEP}{point}")["variants"]["adapters"]["overall"]
                points.append((value, overall))
        points.sort(key=lambda point: point[0])
        places = [(overall["clip_t"]["mean"], overall["dino"]["mean"]) for _, overall in points]
        lines.append(Line(f"{kind} scale", places, style, [f"{value:g}" for value, _ in points]))
        rows += [_row(f"{kind} scale {value:g}", "", overall, METRICS[:3]) for value, overall in points]
    if not rows:
        return None
    sampling = profile.evaluation.sampling
    held = f"The image scale at text scale {sampling.guidance_scale:g}, "
    held += f"the text scale at image scale {sampling.image_guidance_scale:g}"
    return {
        "text": f"{'The one scale of joint guidance' if sampling.guidance == 'joint' else held}; the number at a point "
        "is its scale. Up is more like the reference, right more like the prompt.",
        "chart": line_chart(lines, "CLIP-T", "DINO"),
        "metrics": [METRIC_NAMES[metric] for metric in METRICS[:3]],
        "rows": rows,
    }


def _summary(run: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((run / name / SUMMARY).read_bytes()))


def _difference(first: Sequence[Row], variant: str, second: Sequence[Row], other: str) -> dict[str, Any]:
    """The paired difference of two variants of two evaluations; empty where they do not compare."""
    try:
        return compare(
            [row for row in first if row["variant"] == variant], [row for row in second if row["variant"] == other]
        )
    except ValueError:
        return {}  # what is given may be of other prompts


def _given(
    run: Path, own: Sequence[Row], seed: int
) -> tuple[list[tuple[str, str, Kinds]], list[tuple[str, Kinds]], list[str]]:
    """Lines and differences of what was given; and, in words, what of it does not compare with the run's own rows.

    `seed` is that of the run's evaluation: images by another one are no pairs of the run's.
    """
    lines, differences, left_out = list[tuple[str, str, Kinds]](), list[tuple[str, Kinds]](), list[str]()
    for marker in sorted(run.glob(f"{GIVEN}*/done.json")):
        folder = marker.parent
        name, rows = folder.name.removeprefix(GIVEN), list(read_json_lines(folder / ROWS))
        ours, theirs = scored_by(own[0]), scored_by(rows[0])
        if other := [what for what in ours if ours[what] != theirs[what]]:
            left_out.append(f"{name} (other {', '.join(other)})")
            continue
        given, without = _summary(run, folder.name), incomparable(own[0], rows[0])
        if lost := [METRIC_NAMES[metric] for metric in METRICS if metric in without and metric in rows[0]]:
            left_out.append(f"{', '.join(lost)} of {name} (other masks or models)")
        said, called = notes(given), name
        if {row["case"] for row in rows} != {row["case"] for row in own}:
            mine = [row for row in rows if row["variant"] == rows[0]["variant"]]
            called += f" ({len({row['subject'] for row in mine})} subjects, {len(mine)} images)"
        labels = {"given": called, "adapters": called, "wrong-reference": f"{called}, wrong reference"}
        for variant, kinds in given["variants"].items():
            if variant in labels:
                shown = {
                    kind: {metric: found for metric, found in kinds[kind].items() if metric not in without}
                    for kind in TABLES
                    if kind in kinds
                }
                lines.append((labels[variant], said[variant], shown))
        if json.loads(marker.read_bytes())["recipe"]["settings"]["seed"] != seed:
            left_out.append(f"the difference from {name} (other seeds)")  # rows of given images name none
            continue
        first = "given" if "given" in given["variants"] else "adapters"
        if any(row["variant"] == "adapters" for row in own):
            if not (found := _difference(own, "adapters", rows, first)):
                left_out.append(f"the difference from {name} (other cases)")
            differences.append((f"adapters - {name}", found))
    return lines, differences, left_out


def _masking(summary: Mapping[str, Any]) -> str:
    if "masking" not in summary:
        return ""
    settings = summary["masking"]["settings"]
    # A copied reference's mask is one for all cases, and found once.
    overall = [kinds["overall"] for variant, kinds in summary["variants"].items() if variant != "copy-paste"]
    found, everything = (
        sum(kinds.get(metric, {"count": 0})["count"] for kinds in overall) for metric in ("mdino", "dino")
    )
    return (
        f" MDINO and MCLIP-I are of the subject alone on {settings['background']}, where it was found with a box score "
        f"of at least {settings['min_box_score']:g}: in {found} of {everything} images."
    )


def _breakdowns(variants: Mapping[str, Any], rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The adapters' means by subject and by prompt."""
    kinds = variants.get("adapters", {})
    prompts = {prompt_name(row): row["prompt"].replace(row["class"], "…") for row in rows}
    return [
        {
            "title": f"Adapters just trained, by {name[:-1]}",
            "rows": [
                {
                    "label": f"{label}: {prompts[label]}" if label in prompts else label,
                    "cells": [f"{means[metric]:.3f}" if metric in means else "" for metric in metrics],
                }
                for label, means in kinds[name].items()
            ],
        }
        for name in ("subjects", "prompts")
        if name in kinds
    ]


def _row(label: str, note: str, estimates: dict[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    strong = label == ROLES["adapters"][0]
    return {"label": label, "note": note, "strong": strong, "cells": _cells(estimates, metrics)}


def _cells(estimates: dict[str, Any], metrics: Sequence[str], signed: bool = False) -> list[dict[str, str]]:
    sign = "+" if signed else ""
    cells = []
    for metric in metrics:
        if (estimate := estimates.get(metric)) is None:
            cells.append({"value": "", "interval": ""})
            continue
        known = estimate["low"] is not None
        interval = f"[{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]" if known else ""
        cells.append({"value": f"{estimate['mean']:{sign}.3f}", "interval": interval})
    return cells
