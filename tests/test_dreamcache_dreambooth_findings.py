"""Findings judged from rows: what holds, what does not, and what seeds disagree on."""

import pytest

from dreamcache.ablations import Finding
from dreamcache.dreambooth.findings import Difference, judge, over_seeds, paired, shown

FINDING = Finding("layers", "more beat fewer", ("dino",), (("all", "some"), ("some", "one")))


def rows(shift: float, wobble: float = 0.0, subjects: int = 8) -> list[dict]:
    """An evaluation of subjects whose scores differ from the plain ones by `shift`, and by subject by `wobble`."""
    return [
        {
            "variant": "adapters", "case": f"s{subject}-0", "subject": f"s{subject}", "class": "cup", "live": False,
            "palette_shared": False, "prompt": "a cup", "prompt_index": 0, "position": 0, "seed": subject,
            "dino": 0.3 + 0.1 * subject + shift + wobble * (-1) ** subject, "clip_i": 0.5, "clip_t": 0.2,
            "references": 1, "benchmark": "tiny", "digests": "unknown", "protocol": "one-reference",
            "preprocessing": {"dino": "d", "clip": "c"}, "models": {"dino": "d", "clip": "c"},
        }
        for subject in range(subjects)
    ]  # fmt: skip


def verdict(all_some: Difference, some_one: Difference) -> str:
    (judged,) = judge(FINDING, {("all", "some"): all_some, ("some", "one"): some_one})
    return judged["verdict"]


def test_a_finding_holds_where_every_pair_lies_beyond_its_interval() -> None:
    more, less = paired({0: rows(0.1)}, {0: rows(0.0)}), paired({0: rows(0.0)}, {0: rows(0.1)})
    open_ = paired({0: rows(0.01, wobble=0.05)}, {0: rows(0.0)})
    assert more["dino"]["mean"] == pytest.approx(0.1) and more["dino"]["by_seed"] == [more["dino"]["mean"]]
    assert open_["dino"]["low"] < 0 < open_["dino"]["mean"]
    assert verdict(more, more) == "reproduces"
    assert verdict(more, open_) == "reproduces in part"
    assert verdict(open_, open_) == "not shown"
    assert verdict(less, open_) == "the opposite is shown"
    assert verdict(more, less) == "contradictory"
    assert verdict(more, {}) == "not judged"


def test_seeds_that_disagree_show_nothing() -> None:
    plain = {seed: rows(0.0) for seed in range(3)}
    agreeing = paired({0: rows(0.1), 1: rows(0.3), 7: rows(9.0)}, plain)
    assert agreeing["dino"]["mean"] == pytest.approx(0.2) and agreeing["dino"]["by_seed"] == pytest.approx([0.1, 0.3])
    assert shown(agreeing["dino"]) == 1
    torn = paired({0: rows(0.4), 1: rows(-0.1)}, plain)
    assert torn["dino"]["low"] > 0 and shown(torn["dino"]) == 0
    assert paired({5: rows(0.1)}, plain) == {}


def test_a_difference_counts_as_it_is_read_and_by_every_seed() -> None:
    beyond = {"clusters": 8, "low": 0.0006, "high": 0.02, "by_seed": [0.01, 0.02]}
    below = {"clusters": 8, "low": -0.02, "high": -0.0006, "by_seed": [-0.01, -0.02]}
    assert (shown(beyond), shown(below)) == (1, -1)
    assert shown(beyond | {"low": 0.0004}) == shown(below | {"high": -0.0004}) == 0, "0.000, as it is read"
    assert shown(beyond | {"by_seed": [0.02, -0.001]}) == shown(below | {"by_seed": [-0.02, 0.001]}) == 0


def test_scores_are_averaged_over_cases_that_every_seed_has() -> None:
    first, second = rows(0.0), rows(0.2)
    second[1]["dino"] = None
    averaged = over_seeds([first, second[:-1]])
    assert [row["case"] for row in averaged] == [row["case"] for row in first[:-1]]
    assert averaged[0]["dino"] == pytest.approx(first[0]["dino"] + 0.1) and averaged[1]["dino"] is None
    assert [row["case"] for row in over_seeds([second[:-1], first])] == [row["case"] for row in first[:-1]]
    more = [row | {"dinov2": 0.4} for row in first]  # as where one seed was scored by a further model
    assert all(row["dinov2"] is None for row in over_seeds([more, first]))
    assert paired({0: more, 1: first}, {0: more, 1: more}).keys() == {"dino", "clip_i", "clip_t"}


def test_few_subjects_show_nothing() -> None:
    changes = {
        subjects: paired({0: rows(0.1, subjects=subjects)}, {0: rows(0.0, subjects=subjects)})["dino"]
        for subjects in (1, 5, 6)
    }
    assert changes[5]["low"] > 0.09 and [shown(change) for change in changes.values()] == [0, 0, 1]
    pairs = [[row | {"palette_group": int(row["subject"][1:]) // 2} for row in rows(shift)] for shift in (0.1, 0.0)]
    alike = paired({0: pairs[0]}, {0: pairs[1]})["dino"]
    assert (alike["groups"], alike["clusters"]) == (8, 4) and alike["low"] > 0.09 and shown(alike) == 0
