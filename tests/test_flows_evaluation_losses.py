"""The held-out losses that a report sets side by side are of one kind."""

import json
from pathlib import Path

import pytest
from tiny_profile import tiny_settings
from tiny_triplets import write_tiny_triplets

from dreamcache.backbone import load_backbone
from dreamcache.configs import LossWeights
from dreamcache.training import train_adapters
from flows.evaluation import adapter_models, write_held_out_loss
from flows.evaluation_plans import COMPARED, TRAINED, adapters_of, held_out_file, held_out_inputs
from flows.profiles import load_profile
from flows.report_training import held_out_losses, training


def test_compared_adapters_have_their_losses_weighted_as_the_runs_own(tmp_path: Path) -> None:
    own = {**tiny_settings(), "compare_with": str(tmp_path / "training" / "adapters")}
    profile = load_profile("miniature", own)
    assert profile.training.loss_weights == LossWeights(min_snr_gamma=0.3, subject_weight=10.0)
    paths = write_tiny_triplets(tmp_path)
    train_adapters(load_backbone(profile.backbone), paths, profile.training, tmp_path / "training")
    held_out_file(tmp_path).parent.mkdir()
    written = write_held_out_loss(profile, tmp_path, adapter_models(profile, adapters_of(profile, tmp_path, COMPARED)))
    assert json.loads(written.read_text()) == pytest.approx(held_out_losses(tmp_path), rel=1e-4)
    # Other triplets or settings make the loss another one.
    before = held_out_inputs(profile, tmp_path, COMPARED)
    others = {"held_out": 0.5, "validation_triplets": 3, "min_snr_gamma": None, "subject_weight": 1.0}
    for setting in (*({f"training.{name}": value} for name, value in others.items()), {"evaluation.dtype": "bfloat16"}):
        assert held_out_inputs(load_profile("miniature", {**own, **setting}), tmp_path, COMPARED) != before
    write_tiny_triplets(tmp_path / "others", triplets_a_shard=11)
    assert held_out_inputs(profile, tmp_path / "others", COMPARED) not in ({}, before)
    assert held_out_inputs(profile, tmp_path, TRAINED) == {}
    said = training(profile, tmp_path)
    assert said is not None
    assert [row["label"] for row in said["held_out"]] == ["just trained"], "the file is of no finished evaluation"
    assert said["text"].endswith("min-SNR with gamma 0.3, errors on the subject counting 10 times.")
    plain = {"training.min_snr_gamma": None, "training.subject_weight": 1.0}
    unweighted = training(load_profile("miniature", {**own, **plain}), tmp_path)
    assert unweighted is not None and unweighted["text"].endswith("are held out.")
