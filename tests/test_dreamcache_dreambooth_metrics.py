"""Metrics against sums written out, intervals against known distributions, and summaries of made-up rows."""

import json
import math

import numpy as np
import pytest

from dreamcache.dreambooth.metrics import (
    cosines,
    estimate,
    image_similarity,
    pair_similarity,
    paired_difference,
    text_similarity,
)
from dreamcache.dreambooth.summary import calibrate, compare, summarize


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_scores_are_plain_cosines():
    generator = np.random.default_rng(0)
    generated, references, prompts = (generator.normal(size=(n, 6)) for n in (4, 3, 4))
    expected = [sum(cosine(g, r) for r in references) / 3 for g in generated]
    np.testing.assert_allclose(image_similarity(generated, references), expected, rtol=1e-6)
    np.testing.assert_allclose(
        image_similarity(generated * 7, references[:1]), [cosine(g, references[0]) for g in generated]
    )
    np.testing.assert_allclose(
        text_similarity(generated, prompts), [cosine(*pair) for pair in zip(generated, prompts, strict=True)]
    )
    pairs = pair_similarity(references)
    assert [(i, j) for i, j, _ in pairs] == [(0, 1), (0, 2), (1, 2)]
    np.testing.assert_allclose([c for *_, c in pairs], [cosine(references[i], references[j]) for i, j, _ in pairs])
    with pytest.raises(ValueError, match="no cosines row by row"):
        text_similarity(generated, prompts[:3])
    with pytest.raises(ValueError, match="zero or not finite"):
        cosines(generated, np.zeros_like(generated))
    with pytest.raises(ValueError, match="zero or not finite"):
        cosines(np.full((1, 2), np.nan), np.ones((1, 2)))


def test_means_over_pairs_and_over_subjects():
    result = estimate([1, 2, 3, 10], ["a", "a", "a", "b"])
    assert (result.mean, result.subject_mean, result.count, result.groups) == (4, 6, 4, 2)
    assert (result.low, result.high) == (2, 10), "with two subjects a draw may hold one of them alone"
    weighted = estimate([1, 4], ["a", "b"], weights=[3, 1])
    assert (weighted.mean, weighted.subject_mean) == (1.75, 2.5)
    single = estimate([1, 2], ["a", "a"])
    assert single.mean == 1.5 and math.isnan(single.low) and math.isnan(single.high)
    for values, subjects in (([], []), ([1], ["a", "b"])):
        with pytest.raises(ValueError, match="no mean"):
            estimate(values, subjects)
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        estimate([1, math.nan], ["a", "b"])


def test_intervals_are_of_subjects_repeatable_and_of_the_right_width():
    generator = np.random.default_rng(1)
    level = generator.normal(size=60)
    values = np.repeat(level, 5) + 0.01 * generator.normal(size=300)
    subjects = [f"subject_{number}" for number in range(60) for _ in range(5)]
    result = estimate(values, subjects)
    expected = 1.96 * level.std(ddof=1) / math.sqrt(60)
    assert abs((result.high - result.low) / 2 / expected - 1) < 0.1
    order = generator.permutation(300)
    again = estimate(values[order], [subjects[i] for i in order])
    assert np.allclose([again.low, again.high], [result.low, result.high], atol=1e-12)
    assert estimate(values, subjects, seed=1).low != result.low

    covered = 0
    for _ in range(200):
        sample = generator.normal(size=30)
        one = estimate(sample, [str(number) for number in range(30)], resamples=500)
        covered += one.low <= 0 <= one.high
    assert 0.88 <= covered / 200 <= 0.99


def test_few_subjects_widen_the_interval_as_student_s_t_does():
    values = np.random.default_rng(4).normal(size=6)
    result = estimate(values, [str(number) for number in range(6)])
    expected = 2.571 * values.std(ddof=1) / math.sqrt(6)
    assert 0.9 < (result.high - result.low) / 2 / expected < 1.1


def test_an_interval_is_that_of_the_mean_where_subjects_weigh_differently():
    generator = np.random.default_rng(5)
    counts = [1] * 30 + [30] * 30
    level = np.concatenate([generator.normal(10, 0.1, 30), generator.normal(0, 0.1, 30)])  # the light ones lie far off
    values = np.repeat(level, counts)
    subjects = [f"s{number:02d}" for number, count in enumerate(counts) for _ in range(count)]
    by_image, by_weight = estimate(values, subjects), estimate(level, sorted(set(subjects)), weights=counts)
    assert by_image.low < by_image.mean < by_image.high < 1 < by_image.subject_mean
    assert (by_weight.mean, by_weight.low, by_weight.high) == pytest.approx(
        (by_image.mean, by_image.low, by_image.high), rel=1e-9
    )  # fmt: skip
    cases = {subject: subject for subject in subjects}
    scores, weights = (dict(zip(sorted(cases), column, strict=True)) for column in (level, counts))
    paired = paired_difference(scores, dict.fromkeys(cases, 0.0), cases, weights, seed=7)
    assert paired == estimate(level, sorted(cases), weights=counts, seed=7)


def test_subjects_that_are_alike_are_drawn_together():
    generator = np.random.default_rng(3)
    palettes = np.repeat(generator.normal(size=30), 2)
    subjects = [f"s{number:02d}" for number in range(60)]
    clusters = [f"palette_{number // 2:02d}" for number in range(60)]
    together, apart = estimate(palettes, subjects, clusters=clusters), estimate(palettes, subjects)
    assert (together.groups, together.clusters) == (60, 30) and (apart.groups, apart.clusters) == (60, 60)
    assert together.mean == apart.mean and together.subject_mean == apart.subject_mean
    alone = estimate(palettes[::2], subjects[::2])
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=1e-12), "a twin tells nothing"
    wider = (together.high - together.low) / (apart.high - apart.low)
    assert 1.3 < wider < 1.6, wider

    cases = {subject: subject for subject in subjects}
    zero = dict.fromkeys(subjects, 0.0)
    scores = dict(zip(subjects, palettes, strict=True))
    assert paired_difference(scores, zero, cases, clusters=dict(zip(subjects, clusters, strict=True))) == together


def test_pairing_sees_a_small_difference_between_wide_scores():
    generator = np.random.default_rng(2)
    cases = [f"s{subject}-{number}" for subject in range(20) for number in range(4)]
    subjects = {case: case.split("-")[0] for case in cases}
    first = dict(zip(cases, generator.normal(size=80), strict=True))
    second = {case: value - 0.05 + 0.02 * generator.normal() for case, value in first.items()}
    del second["s0-0"]
    result = paired_difference(first, second, subjects)
    assert result.count == 79 and 0.03 < result.low < result.mean < result.high < 0.07
    with pytest.raises(ValueError, match="no case in common"):
        paired_difference(first, {}, subjects)


def make_rows(variant: str, dino: float, protocol: str = "one-reference", **changes) -> list[dict]:
    """Rows of four subjects with two prompts; DINO differs by subject, CLIP-T by prompt."""
    return [
        {
            "variant": variant, "case": f"s{subject}-{prompt}-0", "subject": f"s{subject}", "class": "cup",
            "live": subject == 3, "palette_shared": subject < 2, "prompt_index": prompt, "position": 0,
            "prompt": f"a cup {prompt}", "seed": 10 * subject + prompt, "reference": None, "reference_masked": None,
            "references": 1 if protocol == "one-reference" else subject + 1,
            "dino": dino + 0.1 * subject, "clip_i": 0.5, "clip_t": 0.2 + 0.1 * prompt, "benchmark": "tiny",
            "digests": "none", "preprocessing": {}, "protocol": protocol,
            "models": {"dino": "d" * 64, "clip": "c" * 64},
        }
        | changes
        for subject in range(4)
        for prompt in range(2)
    ]  # fmt: skip


def test_a_summary_of_rows():
    rows = [*make_rows("no-adapters", 0.2), *make_rows("adapters", 0.3), *make_rows("wrong-reference", 0.2)]
    named = {name: rows[0][name] for name in ("benchmark", "digests", "preprocessing", "models")}
    real = [
        {"subject": f"s{number}", "live": number == 3, "palette_shared": False, "dino": 0.7, "clip_i": 0.8, **named}
        for number in range(4)
    ]
    summary = summarize(rows, real)
    assert summary["protocol"] == "one-reference" and summary["images"] == 24
    adapters = summary["variants"]["adapters"]
    assert adapters["overall"]["dino"]["mean"] == pytest.approx(0.45) and adapters["overall"]["dino"]["count"] == 8
    assert adapters["live"]["dino"]["mean"] == pytest.approx(0.6) and adapters["live"]["dino"]["low"] is None
    assert adapters["object"]["dino"]["mean"] == pytest.approx(0.4)
    assert adapters["palette_shared"]["dino"]["mean"] == pytest.approx(0.35)
    assert adapters["subjects"]["s2"] == pytest.approx({"dino": 0.5, "clip_i": 0.5, "clip_t": 0.25})
    assert adapters["prompts"]["object-01"] == pytest.approx({"dino": 0.4, "clip_i": 0.5, "clip_t": 0.3})
    gain = summary["differences"]["adapters - no-adapters"]["overall"]
    assert gain["dino"]["low"] == pytest.approx(0.1) and gain["clip_t"]["mean"] == 0
    assert summary["differences"]["wrong-reference - no-adapters"]["overall"]["dino"]["mean"] == 0
    assert summary["real_against_real"]["overall"]["dino"]["mean"] == pytest.approx(0.7)
    assert "palette_shared" not in summary["real_against_real"]
    again = summarize(json.loads(json.dumps(rows)), json.loads(json.dumps(real)))
    assert json.dumps(again, allow_nan=False) == json.dumps(summary)


def test_a_palettes_subjects_count_as_one_in_a_summary():
    rows = [*make_rows("no-adapters", 0.2), *make_rows("adapters", 0.3)]
    for row in rows:
        row["palette_group"] = "red" if row["palette_shared"] else None
    for kinds in (summarize(rows)["variants"]["adapters"], summarize(rows)["differences"]["adapters - no-adapters"]):
        assert (kinds["overall"]["dino"]["groups"], kinds["overall"]["dino"]["clusters"]) == (4, 3)
        assert kinds["palette_shared"]["dino"]["clusters"] == 1 and kinds["palette_shared"]["dino"]["low"] is None


def test_all_references_mean_over_pairs_and_over_subjects():
    summary = summarize(make_rows("adapters", 0.0, "all-references"))
    dino = summary["variants"]["adapters"]["overall"]["dino"]
    assert dino["mean"] == pytest.approx((0.1 * 2 + 0.2 * 3 + 0.3 * 4) / 10)
    assert dino["subject_mean"] == pytest.approx(0.15)
    assert summary["variants"]["adapters"]["overall"]["clip_t"]["mean"] == pytest.approx(0.25)


def test_each_metric_counts_by_the_pairs_that_it_is_a_mean_of():
    """All-references: a masked score by the real images whose subject was found, diversity like CLIP-T by the image."""
    rows = make_rows("adapters", 0.0, "all-references")
    for row in rows:
        number = int(row["subject"][1])
        row |= {"mdino": row["dino"], "masked_references": 4 - number, "diversity": 0.1 * number}
    zeros = [row | {"dino": 0.0, "mdino": 0.0, "diversity": 0.0, "variant": "no-adapters"} for row in rows]
    for found in (summarize(rows)["variants"]["adapters"]["overall"], compare(rows, zeros)["overall"]):
        assert found["dino"]["mean"] == pytest.approx((0.1 * 2 + 0.2 * 3 + 0.3 * 4) / 10)
        assert found["mdino"]["mean"] == pytest.approx((0.1 * 3 + 0.2 * 2 + 0.3 * 1) / 10)
        assert found["diversity"]["mean"] == pytest.approx(0.15)


def test_images_that_only_one_has_are_left_out_of_a_comparison():
    found = compare(make_rows("adapters", 0.3), make_rows("no-adapters", 0.2)[:-2])  # without the live subject's
    assert found["overall"]["dino"]["count"] == 6 and "live" not in found
    with pytest.raises(ValueError, match="no subject has two real images"):
        calibrate([])


def test_dinov2_of_different_models_is_left_out_of_a_comparison():
    rows = [row | {"dinov2": 0.5} for row in make_rows("adapters", 0.3)]
    models = rows[0]["models"]
    same, other = ([row | {"models": {**models, "dinov2": name}} for row in rows] for name in ("v" * 64, "w" * 64))
    assert "dinov2" in compare(same, same)["overall"]
    assert compare(same, other)["overall"].keys() == {"dino", "clip_i", "clip_t"}


def test_what_does_not_compare_is_refused():
    first = make_rows("adapters", 0.3)
    for change, message in [
        ({"protocol": "all-references"}, "two values of protocol, 'one-reference' and 'all-references'"),
        ({"benchmark": "other"}, "two values of benchmark"),
        ({"seed": 99}, "two values of seed"),
        ({"models": {"dino": "x" * 64, "clip": "c" * 64}}, "two values of dino model"),
        ({"models": {"dino": "d" * 64, "clip": "x" * 64}}, "two values of clip model"),
        ({"preprocessing": {"clip": "another"}}, "two values of clip preprocessing"),
        ({"case": "s0-0-0"}, "twice"),
        ({"case": None, "subject": "other"}, "twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(first, make_rows("no-adapters", 0.2, **change))
    assert compare(first, []) == compare([], first) == compare([], []) == {}
    with pytest.raises(ValueError, match="two values of variant"):
        compare(first, [*make_rows("no-adapters", 0.2)[:4], *make_rows("adapters", 0.2)[4:]])
    with pytest.raises(ValueError, match="two values of protocol"):
        summarize([*first, *make_rows("no-adapters", 0.2, protocol="all-references")])
    with pytest.raises(ValueError, match="two dino models"):
        summarize([*first, *make_rows("no-adapters", 0.2, models={"dino": "x" * 64})])
    with pytest.raises(ValueError, match="two dino models"):
        summarize(first, make_rows("real", 0.9, models={"dino": "x" * 64}))
    for name in ("benchmark", "digests", "preprocessing"):
        with pytest.raises(ValueError, match=f"two values of {name}"):
            summarize(first, make_rows("real", 0.9, **{name: "other"}))
    with pytest.raises(ValueError, match="no rows"):
        summarize([])
