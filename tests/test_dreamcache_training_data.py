"""Rows of training: each visit's own draws, what is stored for whom, and what held-out triplets are measured by."""

import copy
import itertools
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_dreamcache_adapters import moved_adapters
from tiny_triplets import tiny_triplet, write_tiny_triplets

from dreamcache import validation
from dreamcache.backbone import load_backbone
from dreamcache.configs import TrainingConfig
from dreamcache.held_out import key_hash
from dreamcache.reference import reference_image, to_tensor
from dreamcache.training_data import TrainingData, store_latents
from dreamcache.validation import (
    TIMESTEPS_A_TRIPLET,
    held_out_triplets,
    prepare_validation,
    target_tensor,
    validation_losses,
)
from shards.triplets import TripletShards, write_triplets

CONFIG = TrainingConfig(steps=8, batch_size=4, held_out=0.3)


def test_each_visit_draws_its_own_noise_timestep_and_caption_drop(backbone, paths):
    shards = TripletShards(paths)

    def data(**changes) -> TrainingData:
        return TrainingData(shards, CONFIG.model_copy(update=changes), backbone, None)

    rows = data()
    visits = [rows[0], rows[len(rows.order)], data(seed=1)[0]]  # the same place of two epochs, and of another seed
    noises = [visit[name] for visit in visits for name in ("noise", "reference_noise")]
    assert len({noise.numpy().tobytes() for noise in noises}) == 6
    dropped = {
        share: sum(data(caption_dropout=share)[number]["drop_caption"] for number in range(60))
        for share in (0.0, 0.1, 1.0)
    }
    assert dropped[0.0] == 0 and 2 <= dropped[0.1] <= 12 and dropped[1.0] == 60
    rows.timesteps = 2
    assert {rows[number]["timestep"] for number in range(20)} == {0, 1}


def test_stored_references_take_turns_and_are_their_own_triplets(backbone, paths):
    shards = TripletShards(paths)
    for augmented in (True, False):
        config = CONFIG.model_copy(update={"reference_variants": 2, "augment_references": augmented})
        files = store_latents(backbone, shards, config)
        data, stored = TrainingData(shards, config, backbone, files), [load_file(file) for file in files]
        epoch, seen = len(data.order), {}
        for number in range(2 * epoch):
            shard, place = data.order.at(*data.order.locate(number))
            seen.setdefault((shard, data.kept[shard][place]), []).append(data[number]["reference_latents"])
        shown = {
            variant
            for (shard, index), visits in seen.items()
            for variant in range(2)
            if torch.equal(visits[0], stored[shard][f"references.{variant}"][index])
        }
        assert shown == {0, 1}, "an epoch shows some triplets by one, some by the other"
        first = [visits[0] for visits in seen.values()]
        assert len(seen) == epoch and len({latents.numpy().tobytes() for latents in first}) == epoch
        for (shard, index), (one, other) in seen.items():
            if augmented:
                assert not torch.allclose(one, other, atol=1e-3)
            else:
                triplet = shards.read(shard, index)
                shown = to_tensor(reference_image(triplet.image, triplet.mask, backbone.image_size))
                expected = backbone.encode_images(shown[None])[0]
                torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
                assert torch.equal(one, other)


def test_triplets_of_one_picture_have_references_of_their_own(backbone, tmp_path):
    one = tiny_triplet(0)
    twins = [replace(one, key=key, record={**one.record, "key": key}) for key in ("00000", "00001")]
    shards = TripletShards([write_triplets(tmp_path, 0, twins, "tests")])
    config = CONFIG.model_copy(update={"reference_variants": 2})
    stored = load_file(store_latents(backbone, shards, config)[0])
    torch.testing.assert_close(*stored["latents"])
    references = torch.cat([stored["references.0"], stored["references.1"]])
    for first, second in itertools.combinations(references, 2):
        assert not torch.allclose(first, second, atol=1e-2)


def test_latents_of_another_backbone_dtype_or_shard_are_not_read(backbone, tmp_path):
    paths = write_tiny_triplets(tmp_path / "run", shards=1, triplets_a_shard=2)
    other = copy.copy(backbone)
    other.__dict__["identity"] = "0" * 64
    rounded = load_backbone(backbone.folder, dtype=torch.bfloat16)
    names = [store_latents(one, TripletShards(paths), CONFIG)[0].name for one in (backbone, other, rounded)]
    shutil.rmtree(tmp_path / "run")
    paths = write_tiny_triplets(tmp_path / "run", shards=1, triplets_a_shard=3)
    names.append(store_latents(backbone, TripletShards(paths), CONFIG)[0].name)
    assert len(set(names)) == 4


def test_held_out_triplets_are_taken_in_the_order_of_their_hashes(paths):
    shards = TripletShards(paths)
    everyone = sorted((f"{number:05d}" for number in range(20)), key=key_hash)
    assert [triplet.key for triplet in held_out_triplets(shards, 0.999, 7)] == everyone[:7]


def test_validation_inputs_depend_on_the_triplets_alone(backbone, paths):
    shards = TripletShards(paths)
    triplets = [shards.read(0, index) for index in (0, 2, 1, 4)]  # a ball among discs
    inputs = prepare_validation(backbone, triplets)
    assert inputs.wrong.tolist() == [1, 3, 3, 0], "the next of the class; of the only ball, the next"
    swapped = prepare_validation(backbone, [triplets[1], triplets[0]])
    for name in ("noise", "timesteps"):
        one, other = getattr(inputs, name), getattr(swapped, name)
        assert torch.equal(one[:2], other.flip(0)) and not torch.equal(one[0], one[1])
    quarters = inputs.timesteps * TIMESTEPS_A_TRIPLET // backbone.timesteps
    assert (quarters == torch.arange(TIMESTEPS_A_TRIPLET)).all()
    torch.testing.assert_close(
        inputs.latents[2:3], backbone.encode_images(target_tensor(triplets[2].image, 64)[None]), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="at least 2 held-out triplets, not 1: raise held_out"):
        prepare_validation(backbone, triplets[:1])


def test_right_is_the_own_reference_and_wrong_the_other_s(backbone, paths, monkeypatch):
    shards, adapters = TripletShards(paths), moved_adapters(backbone.unet)
    inputs = prepare_validation(backbone, [shards.read(0, index) for index in range(3)])
    own = validation_losses(backbone, adapters, replace(inputs, wrong=torch.arange(3)))
    monkeypatch.setattr(validation, "BATCH", 2)
    losses = validation_losses(backbone, adapters, inputs)
    torch.testing.assert_close(own["wrong"], losses["right"])
    assert not torch.allclose(losses["wrong"], losses["right"], rtol=1e-4, atol=0)
    # With one reference for all, the one that is its own there loses what it loses with its own.
    of_the_last = validation_losses(backbone, adapters, replace(inputs, wrong=torch.full((3,), 2)))["wrong"]
    torch.testing.assert_close(of_the_last[2], losses["right"][2])
    assert not torch.allclose(of_the_last[:2], losses["right"][:2], rtol=1e-4, atol=0)
