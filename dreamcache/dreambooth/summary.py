"""What an evaluation's rows say: means with intervals, by variant, kind, subject and prompt, and paired differences."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from dreamcache.dreambooth.metrics import Estimate, estimate, paired_difference

# All of them where rows have them; the first three they have always.
METRICS = ("dino", "clip_i", "clip_t", "mdino", "mclip_i", "dinov2", "diversity")
NAMED = ("benchmark", "digests", "protocol", "preprocessing", "masking")
Row = dict[str, Any]

# Kinds of subjects, each with its own line in every table.
KINDS: dict[str, Callable[[Row], bool]] = {
    "overall": lambda row: True,
    "object": lambda row: not row["live"],
    "live": lambda row: bool(row["live"]),
    "palette_shared": lambda row: bool(row["palette_shared"]),
}


def summarize(rows: Sequence[Row], real_rows: Sequence[Row] = (), seed: int = 0) -> dict[str, Any]:
    """Sum up the rows of one evaluation, from the rows alone; the same rows give the same numbers to the last digit.

    Returns a dict for JSON:
        benchmark, digests, protocol, preprocessing, masking (with masked metrics), models: what the rows name.
        variants: by variant, by kind ("overall", "object", "live", "palette_shared", where there are rows of it), by
            metric an `Estimate` as a dict (its NaN as None); and "subjects" and "prompts", by name, by metric the mean.
        differences: paired differences of variants, see `compare`, by "FIRST - SECOND", kind and metric.
        real_against_real: by kind, DINO, CLIP-I and what there is like them, of distinct pairs of a subject's real
            images.

    A masked metric is the mean over the images whose subject was found; its count says how many.

    Under all-references a mean counts every pair of a generated and a real image alike, and `subject_mean` every
    subject. Intervals are of 95%, by bootstrap with `seed` over subjects, those of one palette drawn together.

    Raises:
        ValueError: when there are no rows, or rows of different protocols, benchmarks, models or preprocessing, real
            ones among them.
    """
    if not rows:
        raise ValueError("there are no rows to sum up")
    named = {name: _only(name, rows) for name in NAMED if name in rows[0]}
    for name in named.keys() - {"protocol"}:  # which says nothing of real images among themselves
        _only(name, [rows[0], *real_rows])
    models: dict[str, str] = {}
    for row in [*rows, *real_rows]:
        for role, identity in row["models"].items():
            if models.setdefault(role, identity) != identity:
                raise ValueError(
                    f"rows of two {role} models, {models[role][:12]} and {identity[:12]}: sum up each alone"
                )
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    by_variant = {variant: [row for row in rows if row["variant"] == variant] for variant in variants}
    summary: dict[str, Any] = {
        **named,
        "models": dict(sorted(models.items())),
        "images": len(rows),
        "variants": {},
        "differences": {},
    }
    for variant, its_rows in by_variant.items():
        kinds: dict[str, Any] = {}
        for kind, chosen in _kinds(its_rows):
            kinds[kind] = estimates(chosen, seed)
        kinds["subjects"] = _means(its_rows, lambda row: row["subject"])
        kinds["prompts"] = _means(its_rows, prompt_name)
        summary["variants"][variant] = kinds
    for first, second in (
        ("adapters", "no-adapters"),
        ("adapters", "wrong-reference"),
        ("wrong-reference", "no-adapters"),
        ("copy-paste", "adapters"),
    ):
        if first in by_variant and second in by_variant:
            summary["differences"][f"{first} - {second}"] = compare(by_variant[first], by_variant[second], seed)
    summary["real_against_real"] = {kind: estimates(chosen, seed) for kind, chosen in _kinds(real_rows)}
    return summary


def calibrate(real_rows: Sequence[Row]) -> dict[str, Any]:
    """Real images against real images of their subject: by metric the mean by pair and by subject, and every subject's.

    Returns "metrics" (by metric an `Estimate` as a dict: `mean` is by pair, `subject_mean` by subject) and "subjects".
    Raises ValueError where no subject has two images.
    """
    if not real_rows:
        raise ValueError("no subject has two real images: there is no pair to calibrate with")
    return {"metrics": estimates(real_rows), "subjects": _means(real_rows, lambda row: row["subject"])}


def compare(first: Sequence[Row], second: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Paired differences, first minus second, of two sets of rows of one variant each: by kind and metric.

    The rows may be of one evaluation or of two; images are paired by case, and those that only one has are left out,
    as are masked metrics of different masks and DINOv2 of different models. Empty where no case is in both.

    Raises:
        ValueError: when the rows are of different protocols, benchmarks, scoring models or preprocessing, or of more
            than one variant, or were sampled with different seeds or prompts.
    """
    if not first or not second:
        return {}
    both = [*first, *second]
    shared = [scored_by(row) for row in both]
    for name in shared[0]:
        _only(name, shared)
    left_out = set[str]().union(*(incomparable(first[0], row) for row in both))
    by_case = []
    for rows in (first, second):
        _only("variant", rows)
        by_case.append({row["case"]: row for row in rows})
        if len(by_case[-1]) != len(rows):
            raise ValueError("a case stands in the rows twice: they are of more than one evaluation")
    common = [case for case in by_case[0] if case in by_case[1]]
    for case in common:
        for name in ("prompt", "seed"):
            values = {rows[case][name] for rows in by_case} - {None}  # copy-paste has no seed
            if len(values) > 1:
                raise ValueError(f"the case {case} has two values of {name}: its images cannot be paired")
    result: dict[str, Any] = {}
    for kind, chosen in _kinds([by_case[0][case] for case in common]):
        result[kind] = {}
        for metric in METRICS:
            known = [
                row["case"] for row in chosen if all(rows[row["case"]].get(metric) is not None for rows in by_case)
            ]
            if known and metric not in left_out:
                difference = paired_difference(
                    {case: by_case[0][case][metric] for case in known},
                    {case: by_case[1][case][metric] for case in known},
                    {case: by_case[0][case]["subject"] for case in known},
                    {case: _weight(by_case[0][case], metric) for case in known},
                    {case: _cluster(by_case[0][case]) for case in known},
                    seed,
                )
                result[kind][metric] = _as_dict(difference)
    return result


def scored_by(row: Row) -> dict[str, Any]:
    """What rows must have in common to compare, by name: benchmark, digests, protocol, models and preprocessing."""
    shared = {name: row[name] for name in NAMED[:3]}
    for role in ("dino", "clip"):
        shared |= {f"{role} model": row["models"][role], f"{role} preprocessing": row["preprocessing"].get(role)}
    return shared


def incomparable(first: Row, second: Row) -> set[str]:
    """The metrics in which rows that compare do not: masked ones of different masks, DINOv2 of different models."""
    masked = set() if first.get("masking") == second.get("masking") else {"mdino", "mclip_i"}
    return masked | (set() if first["models"].get("dinov2") == second["models"].get("dinov2") else {"dinov2"})


def prompt_name(row: Row) -> str:
    """A prompt's list and its place there, as summaries name it: "object-03"."""
    return f"{'live' if row['live'] else 'object'}-{row['prompt_index']:02d}"


def _kinds(rows: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    for kind, belongs in KINDS.items():
        if chosen := [row for row in rows if belongs(row)]:
            yield kind, chosen


def _cluster(row: Row) -> str:
    """What a row is drawn with: its palette's subjects, which are alike, or its subject alone."""
    group = row.get("palette_group")  # rows of earlier versions have none
    return row["subject"] if group is None else f"palette/{group}"


def _weight(row: Row, metric: str) -> float:
    """How many pairs of images a score is the mean of."""
    if metric in ("clip_t", "diversity"):
        return 1.0
    return float(row.get("masked_references" if metric in ("mdino", "mclip_i") else "references", 1))


def estimates(rows: Sequence[Row], seed: int = 0) -> dict[str, dict[str, Any]]:
    """By metric the `Estimate`, as a dict, over the rows that have it."""
    found = {metric: [row for row in rows if row.get(metric) is not None] for metric in METRICS}
    return {
        metric: _as_dict(
            estimate(
                [row[metric] for row in scored],
                [row["subject"] for row in scored],
                [_weight(row, metric) for row in scored],
                [_cluster(row) for row in scored],
                seed=seed,
            )
        )
        for metric, scored in found.items()
        if scored
    }


def _means(rows: Sequence[Row], name: Callable[[Row], str]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return {
        group: {
            metric: math.fsum(values) / len(values)
            for metric in METRICS
            if (values := [row[metric] for row in chosen if row.get(metric) is not None])
        }
        for group, chosen in groups.items()
    }


def _as_dict(value: Estimate) -> dict[str, Any]:
    return {name: None if number != number else number for name, number in asdict(value).items()}


def _only(name: str, rows: Sequence[Row]) -> Any:
    """The one value that all rows have."""
    for row in rows:
        if row[name] != rows[0][name]:
            raise ValueError(f"rows of two values of {name}, {rows[0][name]!r} and {row[name]!r}: they do not compare")
    return rows[0][name] if rows else None
