"""The benchmark's metrics and their uncertainty: pure functions of embeddings and of scores (paper Section 4).

DINO and CLIP-I are the cosine between a generated and a real image of the subject, CLIP-T the cosine between a
generated image and its prompt, plain, without the factor of 2.5 that some tools apply. The masked variants, MDINO and
MCLIP-I, are the same functions, given embeddings of masked images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, [low, high]; `count` values of `groups` subjects, in `clusters`, went into it.

    `mean` counts every value alike, `subject_mean` every subject; where all subjects have as many values they agree.
    The interval belongs to `mean`.
    """

    mean: float
    low: float
    high: float
    subject_mean: float
    count: int
    groups: int
    clusters: int


def cosines(first: Array, second: Array) -> NDArray[np.float64]:
    """Cosines of embeddings row by row, (N, D) and (N, D) to (N,) float64; also of (N, D) with all of (R, D) to (N, R).

    The second form is meant by a second array of shape (1, R, D).

    Raises:
        ValueError: when shapes do not fit, or an embedding is zero or not finite.
    """
    first, second = _unit(first), _unit(second)
    if second.ndim == 3 and first.ndim == 2 and second.shape[2] == first.shape[1]:
        return first @ second[0].T
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"embeddings of shapes {first.shape} and {second.shape} have no cosines row by row")
    return (first * second).sum(-1)


def image_similarity(generated: Array, references: Array) -> NDArray[np.float64]:
    """DINO or CLIP-I of each generated image: its mean cosine with the references, (N, D) and (R, D) to (N,) float64.

    R is 1 under the protocol one-reference, and the number of the subject's images under all-references.
    """
    return cosines(generated, references[None]).mean(1)


def text_similarity(generated: Array, prompts: Array) -> NDArray[np.float64]:
    """CLIP-T of each generated image with its own prompt, (N, D) and (N, D) to (N,) float64."""
    return cosines(generated, prompts)


def pair_similarity(images: Array) -> list[tuple[int, int, float]]:
    """Real against real: (i, j, cosine) of all distinct pairs i < j of a subject's R real images, (R, D)."""
    table = cosines(images, images[None])
    return [(i, j, float(table[i, j])) for i in range(len(images)) for j in range(i + 1, len(images))]


def diversity(generated: Array, prompts: Sequence[int]) -> list[float | None]:
    """How much images of one prompt differ: each one's mean of 1 - cosine with the others, (N, D) and N prompts to N.

    None for an image that is alone with its prompt.
    """
    table = 1 - cosines(generated, generated[None])
    own = np.asarray(prompts)
    others = (own[:, None] == own[None]) & ~np.eye(len(own), dtype=bool)
    return [float(row[chosen].mean()) if chosen.any() else None for row, chosen in zip(table, others, strict=True)]


def estimate(
    values: Sequence[float],
    subjects: Sequence[str],
    weights: Sequence[float] | None = None,
    clusters: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """The mean of scores with a 95% bootstrap interval over subjects.

    Whole clusters are drawn: subjects, since the images of one are alike, or those subjects together that are alike
    themselves. The interval is the percentile one, from `resamples` draws with `seed`, its percentiles set apart for
    few clusters as Student's t is wider than the normal distribution (T. Hesterberg's expanded percentile interval);
    with a single cluster it is not known, and is NaN.

    Args:
        values: N scores.
        subjects: the subject of each.
        weights: how much each counts, all alike by default; the number of references makes a mean over pairs.
        clusters: what each is drawn with, its subject by default.

    Raises:
        ValueError: when there is no score, lengths differ, or a score is not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(scores) if weights is None else np.asarray(weights, dtype=np.float64)
    clusters = subjects if clusters is None else clusters
    if not len(scores) or not len(scores) == len(subjects) == len(weight) == len(clusters):
        raise ValueError(f"{len(scores)} scores of {len(subjects)} subjects with {len(weight)} weights: no mean")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    sums, totals = _sums(subjects, scores * weight, weight)
    low = high = float("nan")
    drawn, drawn_totals = _sums(clusters, scores * weight, weight)
    if (number := len(drawn)) > 1:
        draws = np.random.default_rng(seed).integers(number, size=(resamples, number))
        below = ndtr(-math.sqrt(number / (number - 1)) * stdtrit(number - 1, 0.975))
        low, high = np.quantile(drawn[draws].sum(1) / drawn_totals[draws].sum(1), [below, 1 - below])
    return Estimate(
        mean=float(sums.sum() / totals.sum()),
        low=float(low),
        high=float(high),
        subject_mean=float((sums / totals).mean()),
        count=len(scores),
        groups=len(sums),
        clusters=number,
    )


def paired_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    subjects: Mapping[str, str],
    weights: Mapping[str, float] | None = None,
    clusters: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Estimate:
    """The mean of first minus second over the cases that both have, with a 95% bootstrap interval over subjects.

    Args:
        first, second: scores by case, sampled with the same seeds.
        subjects: the subject by case.
        weights: as for `estimate`, by case.
        clusters: as for `estimate`, by case.

    Raises:
        ValueError: when no case is in both.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("the two sets of scores have no case in common, so that there is nothing to pair")
    return estimate(
        [first[case] - second[case] for case in common],
        [subjects[case] for case in common],
        None if weights is None else [weights[case] for case in common],
        None if clusters is None else [clusters[case] for case in common],
        seed=seed,
    )


def _sums(labels: Sequence[str], *columns: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Each column's sums by label, in order of label, so that an interval does not depend on the order of rows."""
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    return [np.bincount(index, column, len(names)).astype(np.float64, copy=False) for column in columns]


def _unit(embeddings: Array) -> NDArray[np.float64]:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    length = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or not length.all():
        raise ValueError("an embedding is zero or not finite: it has no cosine")
    return embeddings / length
