"""Whether the paper's findings reproduce: judged from paired differences and their intervals, never by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dreamcache.ablations import Finding
from dreamcache.dreambooth.summary import METRICS, Row, compare

# Where nothing differs, the interval leaves 0 out in one of sixteen comparisons from six subjects on (simulated, normal
# differences), of thirteen for five, of four for three.
MIN_SUBJECTS = 6

# The rows of an evaluation, one variant, by the seed of the training; and by metric a paired difference of two such.
Seeds = Mapping[int, Sequence[Row]]
Difference = dict[str, dict[str, Any]]


def over_seeds(rows_by_seed: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows whose scores are means over seeds, of the cases that all of them have."""
    by_case = [{row["case"]: row for row in rows} for rows in rows_by_seed]
    averaged = []
    for row in rows_by_seed[0]:
        same = [rows[row["case"]] for rows in by_case if row["case"] in rows]
        if len(same) == len(by_case):
            averaged.append(
                row | {metric: _mean([one.get(metric) for one in same]) for metric in METRICS if metric in row}
            )
    return averaged


def paired(first: Seeds, second: Seeds) -> Difference:
    """Paired differences, first minus second, over the seeds that both were trained with; empty without a common case.

    Scores are averaged over seeds case by case; the interval is that of `compare`. By metric an `Estimate` as
    a dict, and "by_seed": the mean of each seed's own difference. ValueError where the rows do not compare.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return {}
    means = [over_seeds([rows[seed] for seed in seeds]) for rows in (first, second)]
    total = compare(means[0], means[1]).get("overall", {})
    alone = [compare(first[seed], second[seed])["overall"] for seed in seeds] if total and len(seeds) > 1 else [total]
    return {
        metric: {**estimate, "by_seed": [one[metric]["mean"] for one in alone if metric in one]}
        for metric, estimate in total.items()
    }


def shown(difference: Mapping[str, Any]) -> int:
    """1 where a difference lies above 0 beyond its interval and with every seed, -1 where below, else 0.

    Bounds count as they are read, with three digits. Fewer than six subjects, those of one palette counted as one,
    show nothing.
    """
    if difference["clusters"] < MIN_SUBJECTS:
        return 0
    if round(difference["low"], 3) > 0 and min(difference["by_seed"]) > 0:
        return 1
    return -1 if round(difference["high"], 3) < 0 and max(difference["by_seed"]) < 0 else 0


def judge(finding: Finding, differences: Mapping[tuple[str, str], Difference]) -> list[dict[str, Any]]:
    """What the differences of a finding's pairs say of it, once for each of its metrics.

    Each is {"table", "finding", "metric", "verdict", "comparisons"}, a comparison a pair's difference with "first",
    "second" and "shown". The verdict is "reproduces" where all pairs show it, "reproduces in part" where some do and
    none shows the opposite, "not shown" where none does, "the opposite is shown", "contradictory", or "not judged"
    while rows are missing.
    """
    judged = []
    for metric in finding.metrics:
        found = [
            {"first": first, "second": second, **difference[metric], "shown": shown(difference[metric])}
            for first, second in finding.pairs
            if metric in (difference := differences.get((first, second), {}))
        ]
        signs = [one["shown"] for one in found]
        about = {"table": finding.table, "finding": finding.text, "metric": metric}
        judged.append({**about, "verdict": _verdict(signs, len(finding.pairs)), "comparisons": found})
    return judged


def _verdict(signs: Sequence[int], wanted: int) -> str:
    if len(signs) < wanted:
        return "not judged"
    if -1 in signs:
        return "contradictory" if 1 in signs else "the opposite is shown"
    if 1 not in signs:
        return "not shown"
    return "reproduces" if 0 not in signs else "reproduces in part"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None
