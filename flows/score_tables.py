"""Scores as people read them: tables of summaries, of paired differences, and of the calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamcache.dreambooth.findings import MIN_SUBJECTS
from dreamcache.dreambooth.published import published_real_scores
from dreamcache.dreambooth.scoring import REAL_ROWS, ROWS, SUMMARY, summary_json
from dreamcache.dreambooth.summary import METRICS, calibrate, compare, summarize
from shards.files import read_json_lines

METRIC_NAMES = {
    "dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T", "mdino": "MDINO", "mclip_i": "MCLIP-I", "dinov2": "DINOv2",
    "diversity": "diversity",
}  # fmt: skip
KIND_NAMES = {"overall": "all", "palette_shared": "palette shared", "object": "objects", "live": "live"}

# What is scored, and the first of two sentences on it; the second says what its scores show, see `notes`.
REAL = "real against real"
ROLES = {
    "no-adapters": (
        "No adapters",
        "The backbone alone, which knows the class but never saw the subject: the lower bound of likeness.",
    ),
    "adapters": ("Adapters just trained", "Shown the subject's reference."),
    "wrong-reference": (
        "Wrong reference",
        "Shown another subject, of the same class where there is one, and scored against the right one.",
    ),
    "ip-adapter": (
        "IP-Adapter",
        "The same backbone, seeds and references with IP-Adapter, another method without finetuning.",
    ),
    "copy-paste": (
        "Copied reference",
        "The reference itself for every prompt: the upper bound of likeness, deaf to the prompt.",
    ),
    "given": ("Images that were given", "Of whatever origin, and scored exactly as a run's own are."),
    REAL: (
        "Real against real",
        "A subject's photographs with each other: what an ideal method would reach that shows the subject anew.",
    ),
}
# The same of the adapters that the profile compares with.
COMMITTED = {"adapters": "Committed adapters", "wrong-reference": "Committed adapters, wrong reference"}


def estimate_cells(estimates: Mapping[str, Any], signed: bool = False) -> dict[str, str]:
    """Estimates as texts by the metric's name: the mean and, where it is known, its interval."""
    sign = "+" if signed else ""
    cells = {}
    for metric in METRICS:
        if (estimate := estimates.get(metric)) is not None:
            known = estimate["low"] is not None
            interval = f" [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]" if known else ""
            cells[METRIC_NAMES[metric]] = f"{estimate['mean']:{sign}.3f}{interval}"
    return cells


def summary_table(summary: Mapping[str, Any]) -> str:
    """A summary's scores by variant and kind of subjects, with 95% intervals, and its paired differences."""
    lines = [f"benchmark {summary['benchmark']}, protocol {summary['protocol']}, {summary['images']} images"]
    scores = summary["variants"] | {REAL: summary["real_against_real"]}
    rows = [
        {"subjects": KIND_NAMES[kind], "images": label, **estimate_cells(kinds[kind], signed)}
        for table, signed in ((scores, False), (summary["differences"], True))
        for kind in KIND_NAMES
        for label, kinds in table.items()
        if kind in kinds
    ]
    said = [f"{label}: {note}" for label, note in notes(summary).items()]
    return "\n".join([*lines, *aligned(rows), "", *said])


def notes(summary: Mapping[str, Any]) -> dict[str, str]:
    """By variant, and for the real images, two sentences: what it is, and what its scores say, hard subjects apart.

    `summary` needs no more than variants, differences and real_against_real. Kinds without a DINO score have no note.
    """
    differences = summary["differences"]
    scored = {**summary["variants"], REAL: summary["real_against_real"]}
    found = {name: f"{_level(kinds)}." for name, kinds in scored.items() if "dino" in kinds.get("overall", {})}
    for name, text in {
        "no-adapters": "{level} is what any image of the class scores.",
        "ip-adapter": "{level} moves with its scale, a setting, as ours does.",
        "given": "{level} is set against another evaluation's, case by case, by `dreamcache compare`.",
        REAL: "{level} is the mark, and what scores above it has copied the reference.",
    }.items():
        if name in found:
            found[name] = text.format(level=_level(scored[name]))
    for name, others, moral in (
        ("adapters", {"no-adapters": "no adapters", "wrong-reference": "the wrong reference"}, ""),
        ("wrong-reference", {"no-adapters": "no adapters"}, ": what comes of any reference at all, not of this one"),
        ("copy-paste", {"adapters": "the adapters"}, ": DINO rewards copying, so it is read beside CLIP-T"),
    ):
        metrics = ("dino", "clip_t") if name == "copy-paste" else ("dino",)
        parts = [
            f"{METRIC_NAMES[metric]} against {called} is {_change(differences[label], metric)}"
            for other, called in others.items()
            if (label := f"{name} - {other}") in differences
            for metric in metrics
            if metric in differences[label]["overall"]
        ]
        if name in found and parts:
            found[name] = f"{'; '.join(parts)}{moral}."
    return {name: f"{ROLES[name][1]} {text}" for name, text in found.items()}


def _level(kinds: Mapping[str, Any]) -> str:
    hard = kinds.get("palette_shared")
    apart = f" ({hard['dino']['mean']:.3f} on hard subjects)" if hard else ""
    return f"DINO {kinds['overall']['dino']['mean']:.3f}{apart}"


def _change(kinds: Mapping[str, Any], metric: str) -> str:
    """A difference with its interval and what that shows, on all subjects and on the hard ones."""
    texts = []
    for kind, where in (("overall", ""), ("palette_shared", "on hard subjects ")):
        if (change := kinds.get(kind, {}).get(metric)) is not None:
            verdict = "no difference shown"
            if change["low"] is None:
                verdict = "of one subject alone"
            elif change["clusters"] < MIN_SUBJECTS:
                palettes = "" if change["clusters"] == change["groups"] else f" of {change['clusters']} palettes"
                verdict = f"of {change['groups']} subjects{palettes}, too few to tell"
            elif round(change["low"], 3) > 0 or round(change["high"], 3) < 0:  # as they are read
                verdict = "more" if change["low"] > 0 else "less"
            cell = estimate_cells({metric: change}, signed=True)[METRIC_NAMES[metric]]
            texts.append(f"{where}{cell}, {verdict}")
    return texts[0] + "".join(f" ({text})" for text in texts[1:])


def recomputed(folder: Path) -> tuple[dict[str, Any], bool]:
    """The summary of an evaluation's folder computed again from its rows, and whether it is the stored one.

    Raises FileNotFoundError where there are no rows, and ValueError where they are not rows of one evaluation.
    """
    folder = evaluation_folder(folder)
    rows, real_rows = _rows(folder, ROWS), _rows(folder, REAL_ROWS)
    try:
        summary = summarize(rows, real_rows)
    except KeyError as error:
        raise ValueError(
            f"{folder / ROWS}: its rows have no {error.args[0]!r}: not the rows of an evaluation"
        ) from None
    stored = (folder / SUMMARY).read_bytes() if (folder / SUMMARY).is_file() else b""
    return summary, summary_json(summary) == stored


def compared(first: Path, second: Path, variant: str | None = None) -> dict[str, Any]:
    """Paired differences, first minus second, of two evaluations' folders (or run folders), as JSON values.

    `variant` is compared where an evaluation has it, by default "adapters"; else its only one. Raises ValueError where
    the two do not compare: other protocol, benchmark, scoring models, prompts or seeds.
    """
    ours, theirs = (_of_one_variant(folder, variant or "adapters") for folder in (first, second))
    try:
        differences = compare(ours, theirs)
    except KeyError as error:
        raise ValueError(f"the rows have no {error.args[0]!r}: not the rows of an evaluation") from None
    names = [f"{folder} ({found[0]['variant']})" for folder, found in ((first, ours), (second, theirs))]
    return {"first": names[0], "second": names[1], "protocol": ours[0]["protocol"], "differences": differences}


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """What `compared` found, as a table."""
    rows = [
        {"subjects": KIND_NAMES[kind], **estimate_cells(found, True)}
        for kind, found in comparison["differences"].items()
    ]
    heading = f"{comparison['first']} minus {comparison['second']}, protocol {comparison['protocol']}"
    return "\n".join([heading, *aligned(rows)])


def calibration(folder: Path, dino: str, clip: str) -> dict[str, Any]:
    """Real against real by pair and by subject, from the stored rows, and what is published for these models."""
    real_rows = _rows(folder, REAL_ROWS)
    found, row = calibrate(real_rows), real_rows[0]
    published = published_real_scores(row["benchmark"], dino, clip)
    return {"benchmark": row["benchmark"], "digests": row["digests"], **found, "published": published}


def calibration_table(found: Mapping[str, Any]) -> str:
    """What `calibration` found, as a table."""
    published = found["published"]
    lines = [f"benchmark {found['benchmark']} ({found['digests']} images): real against real"]
    rows = []
    for metric, estimate in found["metrics"].items():
        row = {"metric": METRIC_NAMES[metric], "by pair": estimate_cells({metric: estimate})[METRIC_NAMES[metric]]}
        row |= {"by subject": f"{estimate['subject_mean']:.3f}", "pairs": str(estimate["count"])}
        if metric in published:
            nearest = min((estimate["mean"], estimate["subject_mean"]), key=lambda mean: abs(mean - published[metric]))
            agrees = "agrees" if abs(nearest - published[metric]) <= TOLERANCE else "differs: other weights?"
            row |= {"published": f"{published[metric]:.3f}, {agrees}"}
        rows.append(row)
    if not published:
        lines.append("no published value belongs to these models: this is their own bound")
    subjects = [
        {"subject": name} | {METRIC_NAMES[metric]: f"{mean:.3f}" for metric, mean in means.items()}
        for name, means in found["subjects"].items()
    ]
    return "\n".join([*lines, *aligned(rows), "", *aligned(subjects)])


# How near the published mean, given with three digits and of the images' original size, the true weights come.
TOLERANCE = 0.005


def evaluation_folder(folder: Path) -> Path:
    """The folder of rows: the one given, or a run folder's evaluation."""
    return (
        folder if (folder / ROWS).is_file() or not (folder / "evaluation" / ROWS).is_file() else folder / "evaluation"
    )


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = evaluation_folder(folder) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a finished evaluation")
    rows = list(read_json_lines(path))
    if not all(isinstance(row, dict) for row in rows) or (name == ROWS and not rows):
        raise ValueError(f"{path} holds no rows of an evaluation")
    return rows


def _of_one_variant(folder: Path, variant: str) -> list[dict[str, Any]]:
    rows = _rows(folder, ROWS)
    variants = list(dict.fromkeys(row.get("variant") for row in rows))
    if variant not in variants and len(variants) != 1:
        raise ValueError(f"{folder} has no {variant} among {', '.join(map(str, variants))}: name one by --variant")
    return [row for row in rows if row["variant"] == (variant if variant in variants else variants[0])]


def aligned(rows: Sequence[Mapping[str, str]], between: str = "  ") -> Iterable[str]:
    """Rows as lines of aligned columns under the names of all columns that any row has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names, *([row.get(name, "") for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table)
    return [between.join(line).rstrip() for line in padded]
