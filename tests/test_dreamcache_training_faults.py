"""What goes wrong in the middle of a training: it is named with what to do, and what was saved stays whole."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_triplets import write_tiny_triplets

from dreamcache import training
from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.checkpoints import load_state
from dreamcache.configs import TrainingConfig
from dreamcache.objective import training_loss
from dreamcache.training import train_adapters
from dreamcache.training_data import store_latents
from dreamcache.validation import prepare_validation, validation_losses
from shards.triplets import TripletShards

CONFIG = TrainingConfig(steps=4, batch_size=4, learning_rate=1e-3, held_out=0.3, checkpoint_every=2)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_tiny_triplets(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("clipped", [1.0, None])
def test_gradients_that_overflow_at_a_checkpoint_are_not_kept(backbone, paths, tmp_path, monkeypatch, clipped):
    config = CONFIG.model_copy(update={"max_grad_norm": clipped})
    backward, passes = training._Training._backward, []

    def overflowing(self, batch):
        passes.append(loss := backward(self, batch))
        if len(passes) == 4 * config.accumulation:
            next(self.adapters.parameters()).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(training._Training, "_backward", overflowing)
    with pytest.raises(
        ValueError, match="the gradients' norm is inf at step 4: lower learning_rate, which begins anew"
    ):
        train_adapters(backbone, paths, config, tmp_path)
    kept = AdapterSet.from_pretrained(tmp_path / "adapters")
    assert all(tensor.isfinite().all() for tensor in kept.tensors().values())
    assert load_state(tmp_path / "state" / "training.pt")["step"] == 2


def test_out_of_memory_names_the_batch_that_fits(backbone, paths, tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"batch_size": 12})
    for fits, advice in ((5, "12 triplets at a time do not fit into memory, 4 fit: set accumulation to 3"), (0, "nor")):

        def short_of_memory(*arguments, fits=fits):
            if len(arguments[2]["timestep"]) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return training_loss(*arguments)

        monkeypatch.setattr("dreamcache.training.training_loss", short_of_memory)
        with pytest.raises(ValueError, match=advice):
            train_adapters(backbone, paths, config, tmp_path / str(fits))


def test_a_training_goes_on_in_the_parts_that_fit(backbone, paths, tmp_path):
    for steps, accumulation in ((2, 1), (4, 2)):
        config = CONFIG.model_copy(update={"steps": steps, "accumulation": accumulation})
        train_adapters(backbone, paths, config, tmp_path / "resumed")
    train_adapters(backbone, paths, CONFIG, tmp_path / "whole")
    whole, resumed = (
        AdapterSet.from_pretrained(tmp_path / name / "adapters").tensors() for name in ("whole", "resumed")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-5)


def test_latents_that_were_torn_are_stored_again(backbone, tmp_path):
    shards = TripletShards(write_tiny_triplets(tmp_path))
    files = store_latents(backbone, shards, CONFIG)
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(whole[0][: len(whole[0]) // 2])
    files[1].write_bytes(b"")
    assert store_latents(backbone, shards, CONFIG) == files
    assert [file.read_bytes() for file in files] == whole


@pytest.mark.parametrize(
    ("adapters", "said"),
    [({"cache_timestep": 5000}, "the cache's timestep is 5000"), ({"layers": ("midd",)}, "no spatial transformer")],
)
def test_adapters_that_cannot_be_are_told_before_anything_is_encoded(backbone, tmp_path, adapters, said):
    config = TrainingConfig.model_validate(CONFIG.model_dump() | {"adapters": adapters, "held_out": 0})
    paths = write_tiny_triplets(tmp_path / "run")
    with pytest.raises(ValueError, match=said):
        train_adapters(backbone, paths, config, tmp_path / "training")
    assert not (tmp_path / "run" / "triplets" / "latents").exists()


def test_a_start_from_the_self_attention_is_for_adapters_beside_it():
    for other in ({"integration": "spatial_sum"}, {"single_resolution": True}):
        with pytest.raises(ValueError, match="set start=random"):
            TrainingConfig.model_validate({"start": "self-attention", "adapters": other})


def test_a_state_that_could_not_be_read_is_not_called_torn(tmp_path, monkeypatch):
    file = tmp_path / "training.pt"
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match="remove it to train from the start"):
        load_state(file)
    for error in (OSError(5, "Input/output error"), MemoryError()):

        def fail(*arguments, error=error, **more):
            raise error

        monkeypatch.setattr(torch, "load", fail)
        with pytest.raises(type(error)):
            load_state(file)


def test_what_is_encoded_or_validated_in_too_large_batches_is_done_in_smaller_ones(backbone, paths, tmp_path):
    shards = TripletShards(paths)
    triplets = [shards.read(0, index) for index in range(7)]
    adapters = AdapterSet.for_unet(backbone.unet)

    def work(folder):
        stored = store_latents(backbone, TripletShards(write_tiny_triplets(folder)), CONFIG)
        losses = validation_losses(backbone, adapters, prepare_validation(backbone, triplets, adapters))
        return {file.name: load_file(file) for file in stored}, losses

    tensors, losses = work(tmp_path / "enough")
    sizes = []

    def short_of_memory(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hooks = [part.register_forward_pre_hook(short_of_memory) for part in (backbone.unet, backbone.vae.encoder)]
    try:
        fewer, again = work(tmp_path / "short")
    finally:
        for hook in hooks:
            hook.remove()
    assert max(sizes) > 3 and set(tensors) == set(fewer)
    for name, parts in tensors.items():
        torch.testing.assert_close(fewer[name], parts)
    torch.testing.assert_close(again, losses)
