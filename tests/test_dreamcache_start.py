from pathlib import Path

import pytest
import torch
from test_dreamcache_training import CONFIG
from tiny_diffusion import save_tiny_stable_diffusion, tiny_unet
from tiny_triplets import write_tiny_triplets

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.cache import DEFAULT_LAYERS, FeatureCache, find_layer, reference_features
from dreamcache.conditioning import StandIn, conditioned
from dreamcache.start import start_from_self_attention
from dreamcache.training import train_adapters

STARTED = CONFIG.model_copy(update={"start": "self-attention"})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("start")
    save_tiny_stable_diffusion(place / "sd")
    write_tiny_triplets(place / "run")
    return place


@pytest.fixture(scope="module")
def backbone(place):
    return load_backbone(place / "sd")


def features_of(backbone, adapters: AdapterSet, seed: int, references: int = 8) -> FeatureCache:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(references, 3, backbone.image_size, backbone.image_size, generator=generator) * 2 - 1
    latents = backbone.encode_images(images)
    noise = torch.randn(latents.shape, generator=generator)
    layers, text = adapters.cached_layers, backbone.encode_prompts([""])
    return FeatureCache(reference_features(backbone, latents, noise, layers, text))


def unexplained(backbone, adapters: AdapterSet, cache: FeatureCache, layer: str) -> float:
    """The share of a layer's own self-attention that attention to its own input in the cache does not give."""
    transformer = find_layer(backbone.unet, layer)
    block = transformer.transformer_blocks[0]
    with torch.no_grad():
        hidden = transformer.proj_in(transformer.norm(cache.features[layer])).flatten(2).transpose(1, 2)
        own = block.attn1(block.norm1(hidden))
        with conditioned(backbone.unet, adapters, cache):
            stand_in = block.attn1
            assert isinstance(stand_in, StandIn)
            query = stand_in.integration.query(stand_in.prepared, hidden, own)
            attended = adapters[layer].to_out(stand_in.attend(query))
    return float((attended - own).square().sum() / (own - own.mean((0, 1))).square().sum())


def test_started_adapters_attend_as_the_self_attention_does_and_change_nothing(backbone):
    started, random = AdapterSet.for_unet(backbone.unet), AdapterSet.for_unet(backbone.unet)
    start_from_self_attention(
        backbone.unet, started, [features_of(backbone, started, seed) for seed in range(100, 132)]
    )
    unseen = features_of(backbone, started, seed=9)
    for layer in started.layers:  # random weights and pictures of noise: the norms are far from linear here
        assert unexplained(backbone, started, unseen, layer) < 0.7
        assert unexplained(backbone, random, unseen, layer) > 5
    noise, text = torch.randn(2, *backbone.latent_shape), backbone.encode_prompts(["a dog", "a cat"])
    with torch.no_grad():
        plain = backbone.unet(noise, 500, encoder_hidden_states=text).sample
        with conditioned(backbone.unet, started, unseen.select([0, 1])):
            assert torch.equal(backbone.unet(noise, 500, encoder_hidden_states=text).sample, plain)


@pytest.mark.parametrize("linear", [False, True])
@torch.no_grad()
def test_a_start_is_the_layers_own_in_both_kinds_of_projection(linear):
    """A linear `proj_in` is Stable Diffusion 2's, a convolution 1.5's."""
    unet, layer, generator = (
        tiny_unet(use_linear_projection=linear),
        DEFAULT_LAYERS[1],
        torch.Generator().manual_seed(2),
    )
    transformer = find_layer(unet, layer)
    block = transformer.transformer_blocks[0]
    for parameter in block.norm1.parameters():
        parameter.normal_(generator=generator)
    adapters, features = AdapterSet.for_unet(unet, [layer]), torch.randn(8, 32, 4, 4, generator=generator)
    start_from_self_attention(unet, adapters, [FeatureCache({layer: half}) for half in features.chunk(2)])
    adapter, own = adapters[layer], block.attn1
    for one, other in ((adapter.norm, block.norm1), (adapter.to_q, own.to_q)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert torch.equal(adapter.to_out.weight, own.to_out[0].weight)
    tokens, hidden = features.flatten(2).transpose(1, 2), transformer.norm(features)
    if linear:
        hidden = transformer.proj_in(hidden.flatten(2).transpose(1, 2))
    else:
        hidden = transformer.proj_in(hidden).flatten(2).transpose(1, 2)
    hidden = block.norm1(hidden)
    # Least squares with a constant has no error on average, and keys come as near as without the constant's part.
    values, expected = adapter.to_out(adapter.to_v(tokens)), own.to_out[0](own.to_v(hidden))
    torch.testing.assert_close(values.mean((0, 1)), expected.mean((0, 1)), rtol=1e-3, atol=1e-4)
    for error, whole in ((values - expected, expected), (adapter.to_k(tokens) - own.to_k(hidden), own.to_k(hidden))):
        assert error.var((0, 1)).sum() < 0.6 * whole.var((0, 1)).sum()


def test_a_start_looks_at_sixty_four_references(place, backbone, tmp_path, monkeypatch):
    seen: list[FeatureCache] = []
    monkeypatch.setattr("dreamcache.training.start_from_self_attention", lambda *arguments: seen.extend(arguments[2]))
    paths = sorted((place / "run" / "triplets").glob("*.tar"))
    train_adapters(backbone, paths, STARTED.model_copy(update={"steps": 1, "held_out": 0}), tmp_path)
    features = torch.cat([cache.features[DEFAULT_LAYERS[1]] for cache in seen])
    assert len(features) == len({reference.numpy().tobytes() for reference in features}) == 64


def test_a_started_training_resumes_exactly(place, backbone):
    paths = sorted((place / "run" / "triplets").glob("*.tar"))
    train_adapters(backbone, paths, STARTED, place / "straight")
    train_adapters(backbone, paths, STARTED.model_copy(update={"steps": 3}), place / "resumed")
    train_adapters(backbone, paths, STARTED, place / "resumed")
    straight, resumed = (place / name / "adapters" / "adapters.safetensors" for name in ("straight", "resumed"))
    assert straight.read_bytes() == resumed.read_bytes()
    started = AdapterSet.from_pretrained(place / "straight" / "adapters")
    layer = started.layers[-1]
    own = find_layer(backbone.unet, layer).transformer_blocks[0].attn1.to_q.weight
    assert torch.allclose(started[layer].to_q.weight, own, atol=0.05)  # eight small steps from there
    with pytest.raises(ValueError, match="start was 'self-attention' and is 'random'"):
        train_adapters(backbone, paths, CONFIG, place / "resumed")


@pytest.mark.parametrize("ablation", [{"integration": "spatial_sum"}, {"single_resolution": True}])
def test_other_adapters_cannot_start_so(backbone, ablation):
    adapters = AdapterSet.for_unet(backbone.unet, **ablation)
    with pytest.raises(ValueError, match="start from the self-attention"):
        start_from_self_attention(backbone.unet, adapters, [])
