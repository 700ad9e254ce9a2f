"""Training of the paper's alternatives: integrations, layers, timestep and text of the cache."""

import csv

import pytest
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_triplets import write_tiny_triplets

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.configs import AdapterConfig, TrainingConfig
from dreamcache.sample_grid import save_sample_grid
from dreamcache.training import train_adapters
from dreamcache.validation import held_out_triplets
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
