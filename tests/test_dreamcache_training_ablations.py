"""Training of the paper's alternatives: integrations, layers, timestep and text of the cache."""

import csv

import pytest
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_triplets import write_tiny_triplets

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.configs import AdapterConfig, TrainingConfig
from dreamcache.held_out import is_held_out, is_trained_on
from dreamcache.sample_grid import save_sample_grid
from dreamcache.training import train_adapters
from dreamcache.training_data import TrainingData, store_latents
from dreamcache.validation import held_out_triplets
from shards.files import copy_keys
from shards.triplets import TripletShards


@pytest.mark.parametrize(
    "ablation",
    [
        {"integration": "decoupled_blocks", "layers": ("encoder", "mid"), "cache_timestep": 150},
        {"integration": "textual_sum", "single_resolution": True, "cache_prompt": "a photo of a {subject}"},
    ],
)
def test_ablations_train_and_are_kept_with_the_adapters(ablation, tmp_path):
    save_tiny_stable_diffusion(tmp_path / "sd")
    paths, backbone = write_tiny_triplets(tmp_path / "run"), load_backbone(tmp_path / "sd")
    config = TrainingConfig(
        adapters=AdapterConfig(**ablation), steps=2, batch_size=4, learning_rate=1e-3, held_out=0.3, checkpoint_every=2
    )
    adapters = AdapterSet.from_pretrained(train_adapters(backbone, paths, config, tmp_path / "training"), backbone)
    assert adapters.config.model_dump(exclude={"layers"}) == config.adapters.model_dump(exclude={"layers"})
    with (tmp_path / "training" / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["validation_right"]) != float(last["validation_none"])
    held_out = held_out_triplets(TripletShards(paths), config.held_out, 2)
    save_sample_grid(backbone, adapters, held_out, tmp_path / "samples" / "2.png")
    other = config.model_copy(update={"adapters": AdapterConfig(), "steps": 3})
    with pytest.raises(ValueError, match="adapters was .* and is"):
        train_adapters(backbone, paths, other, tmp_path / "training")


def test_shares_lie_within_larger_ones_and_beside_what_is_held_out(tmp_path):
    save_tiny_stable_diffusion(tmp_path / "sd")
    shards, backbone = TripletShards(write_tiny_triplets(tmp_path / "run")), load_backbone(tmp_path / "sd")

    def kept(share: float) -> set[str]:
        data = TrainingData(shards, TrainingConfig(held_out=0.2, share=share), backbone, None)
        return {shards.keys(shard)[index] for shard in range(2) for index in data.kept[shard]}

    held_out = {triplet.key for triplet in held_out_triplets(shards, 0.2, 100)}
    assert kept(0.2) < kept(0.5) < kept(1.0)
    assert kept(1.0) | held_out == {f"{n:05d}" for n in range(20)} and not kept(1.0) & held_out
    assert 5 <= len(kept(0.5)) <= 11


def test_images_of_one_caption_are_held_out_together():
    captions = [f"00000-{number:05d}" for number in range(200)]
    copies = [copy_keys(caption, 3) for caption in captions]
    for kept in (lambda key: is_held_out(key, 0.3), lambda key: is_trained_on(key, 0.3, 0.5)):
        alike = [{kept(key) for key in keys} for keys in copies]
        assert alike == [{kept(caption)} for caption in captions]  # as were there one image
        assert 40 < alike.count({True}) < 90


def test_references_keep_their_background_if_asked_to(tmp_path):
    save_tiny_stable_diffusion(tmp_path / "sd")
    shards, backbone = TripletShards(write_tiny_triplets(tmp_path / "run")), load_backbone(tmp_path / "sd")
    white = {}
    for references in ("subject", "image"):
        config = TrainingConfig(references=references, held_out=0, augment_references=False, store_latents=False)
        row = TrainingData(shards, config, backbone, None)[0]
        white[references] = float((row["reference"] > 0.99).all(0).float().mean())
    # The disc alone is a good half of the image; with its noisy ground the image is white at its edges alone.
    assert white["image"] < 0.3 < 0.4 < white["subject"]
    variants = TrainingConfig(reference_variants=1)
    others = [store_latents(backbone, shards, variants.model_copy(update={"references": r})) for r in white]
    assert not set(others[0]) & set(others[1])


def test_later_settings_leave_earlier_trainings_up_to_date(tmp_path):
    """A training that knows nothing of the share is that of all triplets, and no other's."""
    save_tiny_stable_diffusion(tmp_path / "sd")
    paths, backbone = write_tiny_triplets(tmp_path / "run"), load_backbone(tmp_path / "sd")
    later = {"share", "references", "subject_weight"}
    assert not later & TrainingConfig().content().keys()
    assert TrainingConfig().content().keys() | later == TrainingConfig.model_fields.keys()
    config = TrainingConfig(steps=2, batch_size=4, held_out=0.3)
    train_adapters(backbone, paths, config, tmp_path / "training")
    with pytest.raises(ValueError, match="share was None and is 0.5"):
        train_adapters(backbone, paths, config.model_copy(update={"share": 0.5, "steps": 3}), tmp_path / "training")
    train_adapters(backbone, paths, config.model_copy(update={"share": 0.5}), tmp_path / "half")
    with pytest.raises(ValueError, match="share was 0.5 and is None"):
        train_adapters(backbone, paths, config.model_copy(update={"steps": 3}), tmp_path / "half")


def test_trainings_at_once_share_out_the_shards(tmp_path):
    save_tiny_stable_diffusion(tmp_path / "sd")
    backbone, config = load_backbone(tmp_path / "sd"), TrainingConfig(reference_variants=2)
    shards = TripletShards(write_tiny_triplets(tmp_path / "run", shards=8, triplets_a_shard=1))
    told, orders = [], set()

    def meanwhile(row):
        told.append(row)
        if len(told) == 1:
            store_latents(backbone, shards, config)

    files = store_latents(backbone, shards, config, meanwhile)
    assert told == [{"encoded": 1, "triplets": 8}], "what another training has stored is not encoded again"
    for _ in range(3):
        for file in files:
            file.unlink()
        store_latents(backbone, shards, config)
        orders.add(tuple(sorted(range(8), key=lambda shard: files[shard].stat().st_mtime_ns)))
    assert len(orders) > 1, "each has its own order, so they seldom come to the same shard at once"
