"""What a plan refuses before anything is made, and which evaluations a profile has."""

from pathlib import Path
from typing import Any

import pytest
from tiny_profile import tiny_settings

from flows.evaluation_plans import COMPARED, evaluations
from flows.plans import pending
from flows.profiles import load_profile

WITH_IP_ADAPTER = {"evaluation.variants": ["adapters", "ip-adapter"]}


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (WITH_IP_ADAPTER, ValueError, "the variant ip-adapter needs one: --set ip_adapter="),
        ({**WITH_IP_ADAPTER, "ip_adapter": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
        ({"evaluation.sampling.guidance": "joint"}, ValueError, "joint guidance has one scale, guidance_scale"),
    ],
)
def test_what_only_a_late_step_would_miss_is_said_first(
    settings: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    for command in ("run", "evaluate-adapters"):
        with pytest.raises(error, match=said):
            pending(command, load_profile("miniature", {**tiny_settings(), **settings}), tmp_path)
    unswept = {"evaluation.sampling.guidance": "joint", "sweep.image_scales": []}
    assert pending("run", load_profile("miniature", {**tiny_settings(), **unswept}), tmp_path)


def test_other_adapters_are_compared_where_the_runs_own_are_evaluated() -> None:
    assert COMPARED in evaluations(load_profile("miniature"))
    for variants in (["no-adapters"], ["wrong-reference", "copy-paste"]):
        assert evaluations(load_profile("miniature", {"evaluation.variants": variants})) == ["evaluation"]
