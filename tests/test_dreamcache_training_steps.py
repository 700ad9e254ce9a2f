"""What one step does to the weights: decay, clipping, accumulated parts, the running average."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamcache.adapters import AdapterSet
from dreamcache.checkpoints import load_state
from dreamcache.configs import TrainingConfig
from dreamcache.training import train_adapters
from dreamcache.validation import held_out_triplets, prepare_validation, validation_losses
from shards.triplets import TripletShards

CONFIG = TrainingConfig(
    steps=1, batch_size=2, learning_rate=1e-3, weight_decay=0, max_grad_norm=None, held_out=0, store_latents=False
)


def trained(backbone, paths: list[Path], folder: Path, **changes: Any) -> dict[str, Any]:
    """The state of a short training with some settings changed."""
    train_adapters(backbone, paths, CONFIG.model_copy(update=changes), folder)
    state = load_state(folder / "state" / "training.pt")
    assert state is not None
    return state


def test_only_the_attention_s_matrices_decay(backbone, paths, tmp_path):
    # At a learning rate of 1e-3 this decay takes all of a weight, and the step gives it 1e-3 at most.
    weights = trained(backbone, paths, tmp_path, weight_decay=1000)["adapters"]
    fresh = AdapterSet.for_unet(backbone.unet).tensors()
    for name, weight in weights.items():
        decayed = name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight"))
        rest = weight if decayed else weight - fresh[name]
        assert rest.abs().max() <= 1.01e-3, name


def test_gradients_are_clipped_together(backbone, paths, tmp_path):
    # Far below Adam's epsilon of 1e-8 a gradient moves next to nothing.
    weights = trained(backbone, paths, tmp_path, max_grad_norm=1e-12)["adapters"]
    fresh = AdapterSet.for_unet(backbone.unet).tensors()
    assert max(float((weight - fresh[name]).abs().max()) for name, weight in weights.items()) < 1e-6


def test_accumulated_parts_have_the_gradient_of_their_batch(backbone, paths, tmp_path):
    whole, parts = (
        trained(backbone, paths, tmp_path / str(parts), accumulation=parts)["optimizer"]["state"] for parts in (1, 2)
    )
    assert len(whole) == len(list(AdapterSet.for_unet(backbone.unet).parameters()))
    for number, moments in whole.items():
        torch.testing.assert_close(parts[number]["exp_avg"], moments["exp_avg"], rtol=1e-3, atol=1e-7)


def test_the_running_average_is_validated_and_kept(backbone, paths, tmp_path):
    settings = {"ema_decay": 0.2, "seed": 3, "held_out": 0.3, "validation_triplets": 2}
    expected = AdapterSet.for_unet(backbone.unet, seed=3).tensors()
    for steps, decay in ((1, 2 / 11), (2, 0.2)):  # it grows with the steps up to the one that is set
        state = trained(backbone, paths, tmp_path, steps=steps, **settings)
        expected = {name: decay * mean + (1 - decay) * state["adapters"][name] for name, mean in expected.items()}
        torch.testing.assert_close(state["average"], expected)
    kept = AdapterSet.from_pretrained(tmp_path / "adapters")
    assert all(torch.equal(tensor, state["average"][name]) for name, tensor in kept.tensors().items())
    with (tmp_path / "log.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    held_out = held_out_triplets(TripletShards(paths), 0.3, 2)
    losses = validation_losses(backbone, kept, prepare_validation(backbone, held_out))
    for name, values in losses.items():
        assert float(last[f"validation_{name}"]) == pytest.approx(float(values.mean()), rel=1e-6)
