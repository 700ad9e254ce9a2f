"""The report's part that compares: beside the paper's Table 2, subject by subject, and likeness against the prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamcache.dreambooth.metrics import estimate
from dreamcache.dreambooth.published import TABLE_2, published_real_scores
from dreamcache.dreambooth.scoring import ROWS, SUMMARY
from dreamcache.dreambooth.summary import Row
from flows.charts import Line, line_chart
from flows.evaluation_plans import COMPARED, TRAINED
from flows.profiles import Profile
from flows.report_training import current_evaluations
from flows.score_tables import COMMITTED, ROLES
from shards.files import read_json_lines

METRICS = ("dino", "clip_i", "clip_t")
# How the chart shows each of `ROLES`.
STYLES = {
    "adapters": "right", "wrong-reference": "wrong", "no-adapters": "none", "ip-adapter": "accent",
    "copy-paste": "soft",
}  # fmt: skip


def comparison(profile: Profile, run: Path) -> dict[str, Any] | None:
    """The scores of a run beside the paper's, by subject, and DINO against CLIP-T; None without an evaluation."""
    current = [name for name, _ in current_evaluations(profile, run)]
    if TRAINED not in current:
        return None
    summary = json.loads((run / TRAINED / SUMMARY).read_bytes())
    variants = {(ROLES[name][0], STYLES[name]): kinds["overall"] for name, kinds in summary["variants"].items()}
    if COMPARED in current:
        committed = json.loads((run / COMPARED / SUMMARY).read_bytes())["variants"]
        if "adapters" in committed:  # not all of their images were rejected
            variants[COMMITTED["adapters"], "accent"] = committed["adapters"]["overall"]
    rows = list(read_json_lines(run / TRAINED / ROWS))
    return {
        "paper": _beside_the_paper(profile, summary, variants),
        "subjects": _by_subject(rows, summary["real_against_real"]),
        "tradeoff": _tradeoff(rows, variants),
    }


def _beside_the_paper(
    profile: Profile, summary: Mapping[str, Any], variants: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    backbone = "the miniature" if profile.name == "miniature" else profile.backbone
    ours = [
        {
            "method": f"This run: {name[0].lower()}{name[1:]}", "backbone": backbone,
            "references": "" if name == ROLES["no-adapters"][0] else "1", "ours": True,
            "protocol": f"{summary['benchmark']}, {summary['protocol']}, {estimates['dino']['groups']} subjects, "
            f"{estimates['dino']['count']} images",
            "cells": [f"{estimates[metric]['mean']:.3f}" for metric in METRICS],
        }
        for (name, _), estimates in variants.items()
    ]  # fmt: skip
    papers = [
        {
            "method": row.method, "backbone": row.backbone, "references": row.references, "ours": False,
            "protocol": "30 subjects, 3,000 images" if row.method == "DreamCache" else "as the paper cites it",
            "cells": [f"{value:.3f}" for value in row[3:]],
        }
        for row in TABLE_2
    ]  # fmt: skip
    same = len(published_real_scores(summary["benchmark"], profile.dino, profile.clip)) == 2
    return {
        "text": "Same benchmark and same kind of scoring models as the paper's rows."
        if same
        else f"The benchmark ({summary['benchmark']}) or the models that score are not the paper's: this run's numbers "
        "compare with each other, not with the paper's. What compares is their order, and their distances.",
        "rows": [*ours, *papers],
    }


def _by_subject(rows: Sequence[Row], real: Mapping[str, Any]) -> dict[str, Any]:
    """DINO of every subject with the adapters, its interval over the subject's images, and without adapters beside."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row["variant"] in ("adapters", "no-adapters"):
            found.setdefault(row["subject"], {}).setdefault(row["variant"], []).append(row)
    lines: list[dict[str, Any]] = []
    for subject, its in found.items():
        if "adapters" not in its:
            continue
        mean = estimate([row["dino"] for row in its["adapters"]], [row["case"] for row in its["adapters"]])
        cases = {row["case"] for row in its["adapters"]}  # an image of one colour has no score
        plain = [row["dino"] for row in its.get("no-adapters", ()) if row["case"] in cases]
        line: dict[str, Any] = {"subject": subject, "mean": mean.mean, "images": mean.count}
        low, high = (mean.low, mean.high) if mean.low == mean.low else (mean.mean, mean.mean)
        lines.append(line | {"low": low, "high": high, "plain": sum(plain) / len(plain) if plain else None})
    lines.sort(key=lambda line: -line["mean"])
    bound = real["overall"]["dino"]["mean"] if real else None
    values = [value for line in lines for value in (line["low"], line["high"], line["plain"]) if value is not None]
    least, most = min([0.0, *values]), max([*values, bound or 0.0, 1e-9])

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - least) / (most - least), 2)

    for line in lines:
        line["at"] = {name: place(line[name]) for name in ("mean", "low", "high", "plain")}
        line["gain"] = None if line["plain"] is None else line["mean"] - line["plain"]
    gained = [line["gain"] for line in lines if line["gain"] is not None]
    return {
        "lines": lines, "least": least, "most": most, "zero": place(0.0), "bound": place(bound),
        "text": f"DINO of {len(lines)} subjects, most alike first: the mean of the adapters' images, with its 95% "
        "interval, bootstrapped over the subject's images, and that of the same prompts and seeds without adapters. "
        + (f"The adapters are ahead for {sum(gain > 0 for gain in gained)} of {len(gained)}. " if gained else "")
        + (f"The line is the mean of real against real, {bound:.3f}." if bound is not None else ""),
    }  # fmt: skip


def _tradeoff(rows: Sequence[Row], variants: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """DINO against CLIP-T: a cross of intervals for every kind of image, a dot for every subject with the adapters."""
    lines = []
    for (name, style), estimates in variants.items():
        if name == ROLES["copy-paste"][0]:
            continue  # its DINO is 1, and all else would be at the bottom
        across, up = estimates["clip_t"], estimates["dino"]
        if across["low"] is None or up["low"] is None:
            across, up = ({"low": one["mean"], "high": one["mean"], "mean": one["mean"]} for one in (across, up))
        lines.append(Line("", [(across["mean"], up["low"]), (across["mean"], up["high"])], style))
        lines.append(Line(name, [(across["low"], up["mean"]), (across["high"], up["mean"])], style))
    by_subject: dict[str, list[Row]] = {}
    for row in rows:
        if row["variant"] == "adapters":
            by_subject.setdefault(row["subject"], []).append(row)
    means = [tuple(sum(row[m] for row in its) / len(its) for m in ("clip_t", "dino")) for its in by_subject.values()]
    dots = Line("", [(x, y) for x, y in means], "dots", [""] * len(means))
    return line_chart([dots, *lines], "CLIP-T: like the prompt", "DINO: like the subject")
