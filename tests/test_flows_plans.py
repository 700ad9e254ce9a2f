"""What a plan refuses before anything is made, which evaluations a profile has, and what makes a step anew."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_profile import tiny_settings
from tiny_triplets import write_tiny_triplets

from flows.evaluation_plans import COMPARED, evaluations
from flows.plans import description_step, pending, report_digest, report_is_current, training_step
from flows.profiles import load_profile
from flows.steps import Step
from shards.markers import marker_path

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


def test_adapters_are_trained_anew_for_what_they_learn_from_and_longer_for_more_steps(tmp_path: Path) -> None:
    run, other = tmp_path / "run", {"backbone": tiny_settings()["compare_with"]}
    write_tiny_triplets(run, shards=1, triplets_a_shard=2)

    def step(**settings: Any) -> Step:
        return training_step(load_profile("miniature", {**tiny_settings(), **settings}), run)

    step().begin()
    (weights := run / "training" / "weights").write_bytes(b"weights")
    step().finish([weights], {})
    assert step(**{"training.samples_every": 2}).changes() == [], "pictures on the way change nothing"
    assert step(**{"training.learning_rate": 0.5}).changes() == ["training.learning_rate: 0.003 -> 0.5"]
    (backbone,) = step(**other).changes()
    assert backbone.startswith("training.models.backbone: ")
    assert step(**{"training.steps": 8}).changes() == ["training.steps: 4 -> 8"]
    for _ in range(2):
        assert step(**{"training.steps": 8}).begin() is None and weights.is_file(), "it goes on"
    write_tiny_triplets(run, shards=2, triplets_a_shard=2)
    assert step(**{"training.steps": 8}).begin() is not None and not weights.exists()
    assert step(**{"training.steps": 8, "training.learning_rate": 0.5}).begin() is not None


@pytest.mark.parametrize("setting", ["backbone", "dino", "clip", "compare_with", "benchmark"])
def test_a_model_that_is_not_there_is_named_before_anything_is_made(setting: str, tmp_path: Path) -> None:
    settings = {**tiny_settings(), setting: str(tmp_path / "nowhere")}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pending("run", load_profile("miniature", settings), tmp_path)


def test_a_report_is_written_again_for_other_settings_results_or_another_name(tmp_path: Path) -> None:
    run, profile = tmp_path / "run", load_profile("miniature")
    write_tiny_triplets(run, shards=1, triplets_a_shard=2)
    assert not report_is_current(profile, run)
    (run / "report.html").write_text(f"<!-- {report_digest(profile, run)} -->")
    assert report_is_current(profile, run)
    assert not report_is_current(load_profile("miniature", {"training.steps": 7}), run)
    assert not report_is_current(profile, run.rename(tmp_path / "other"))
    (tmp_path / "elsewhere").mkdir()
    run = (tmp_path / "other").rename(tmp_path / "elsewhere" / "run")
    assert report_is_current(profile, run)
    (run / "triplets" / "00000.done.json").write_text("{}")
    assert not report_is_current(profile, run)


def test_a_card_is_written_again_for_other_rejects_and_names_the_models_terms(tmp_path: Path) -> None:
    (shard,) = write_tiny_triplets(tmp_path, shards=1, triplets_a_shard=2)
    before = description_step(tmp_path)
    content = json.loads(marker_path(shard).read_bytes())
    content["rejects"]["sha256"] = "0" * 64
    marker_path(shard).write_text(json.dumps(content))
    assert description_step(tmp_path).digest != before.digest and before.recipe["models"] == {}
    profile = load_profile("miniature")
    terms = description_step(tmp_path, profile).recipe["models"]
    assert len(terms) == 4 and set(terms.values()) == {"Apache-2.0, trained by this project"}
    (tmp_path / "elsewhere").symlink_to(profile.dataset.images.model)  # as another checkout's are
    other = load_profile("miniature", {"images.model": str(tmp_path / "elsewhere")})
    assert description_step(tmp_path, other).recipe["models"] == terms
