from collections.abc import Sequence

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_diffusion import save_tiny_stable_diffusion, tiny_unet

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.cache import DEFAULT_LAYERS, FeatureCache, collect_features
from dreamcache.conditioning import conditioned


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


def inputs(batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, 8, 8, generator=generator)
    return sample, torch.full((batch,), 500), torch.randn(batch, 7, 16, generator=generator)


def cache_of(unet: UNet2DConditionModel, references: int = 1, seed: int = 1) -> FeatureCache:
    sample, timesteps, text = inputs(references, seed)
    return FeatureCache(collect_features(unet, sample, timesteps * 0 + 1, text, DEFAULT_LAYERS))


def moved_adapters(unet: UNet2DConditionModel, layers: Sequence[str] = DEFAULT_LAYERS, **ablation) -> AdapterSet:
    adapters = AdapterSet.for_unet(unet, layers, **ablation)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapters


@torch.no_grad()
def predict(unet, sample, timesteps, text) -> torch.Tensor:
    return unet(sample, timesteps, text).sample


def test_fresh_adapters_and_strength_zero_change_no_bit(unet):
    arguments, cache = inputs(), cache_of(unet)
    plain = predict(unet, *arguments)
    with conditioned(unet, AdapterSet.for_unet(unet), cache):
        assert torch.equal(predict(unet, *arguments), plain)
    for strength in (0.0, torch.zeros(2)):
        with conditioned(unet, moved_adapters(unet), cache, strength):
            assert torch.equal(predict(unet, *arguments), plain)


def test_unet_is_itself_again_after_conditioning(unet):
    arguments, cache = inputs(), cache_of(unet)
    plain, weights = predict(unet, *arguments), {n: p.clone() for n, p in unet.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), conditioned(unet, moved_adapters(unet), cache):
        assert not torch.equal(predict(unet, *arguments), plain)
        raise RuntimeError("inside")
    assert torch.equal(predict(unet, *arguments), plain)
    assert list(unet.state_dict()) == list(weights)
    assert all(torch.equal(unet.state_dict()[name], weight) for name, weight in weights.items())


def test_strength_by_row(unet):
    adapters, cache = moved_adapters(unet), cache_of(unet)
    arguments = inputs(4)
    plain = predict(unet, *arguments)
    with conditioned(unet, adapters, cache):
        full = predict(unet, *arguments)
    for strength in ([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]):
        with conditioned(unet, adapters, cache, torch.tensor(strength)):
            mixed = predict(unet, *arguments)
        for row, value in enumerate(strength):
            torch.testing.assert_close(mixed[row], full[row] if value else plain[row], rtol=1e-5, atol=1e-5)
    with conditioned(unet, adapters, cache, torch.ones(4)):
        assert torch.equal(predict(unet, *arguments), full)
    with conditioned(unet, adapters, cache, torch.tensor([0.5] * 4)):
        half = predict(unet, *arguments)
    assert not torch.allclose(half, plain) and not torch.allclose(half, full)
    with conditioned(unet, adapters, cache, torch.ones(3)), pytest.raises(ValueError, match="strength has 3 rows"):
        predict(unet, *arguments)


def test_rows_read_their_own_reference(unet):
    adapters, caches = moved_adapters(unet), [cache_of(unet, seed=seed) for seed in (1, 2)]
    arguments = inputs(4)
    with conditioned(unet, adapters, FeatureCache.stack(caches), torch.ones(4)):
        together = predict(unet, *arguments)
    for row in range(4):
        with conditioned(unet, adapters, caches[row % 2]):
            alone = predict(unet, *(argument[row : row + 1] for argument in arguments))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    with conditioned(unet, adapters, FeatureCache.stack(caches)), pytest.raises(ValueError, match="shared out"):
        predict(unet, *inputs(3))


def test_every_adapter_tensor_moves_within_three_steps(unet):
    adapters = AdapterSet.for_unet(unet)
    before = {name: tensor.clone() for name, tensor in adapters.tensors().items()}
    # Without weight decay a tensor moves only if a gradient reaches it.
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-3, weight_decay=0.0)
    # At 16 x 16 the mid block is 2 x 2: over a single key attention is constant, and nothing reaches its query.
    sample, timesteps, text = torch.randn(2, 4, 16, 16), torch.tensor([20, 500]), torch.randn(2, 7, 16)
    cache = FeatureCache(collect_features(unet, sample, timesteps, text, DEFAULT_LAYERS))
    for step in range(3):
        target = torch.randn(sample.shape, generator=torch.Generator().manual_seed(step))
        with conditioned(unet, adapters, cache):
            torch.nn.functional.mse_loss(unet(sample, timesteps, text).sample, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, tensor in adapters.tensors().items() if torch.equal(tensor, before[name])] == []


def test_fresh_weights_are_drawn_by_the_seed_in_a_linear_layer_s_range(unet):
    one, again, other = (AdapterSet.for_unet(unet, DEFAULT_LAYERS[1:2], seed=seed).tensors() for seed in (3, 3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    drawn = {f"{DEFAULT_LAYERS[1]}.{name}" for name in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight")}
    assert {name for name, tensor in one.items() if not torch.equal(tensor, other[name])} == {
        *drawn, f"{DEFAULT_LAYERS[1]}.to_out.bias"
    }  # fmt: skip
    for name in drawn:
        assert 0.95 < float(one[name].abs().max()) * one[name].shape[1] ** 0.5 <= 1


def test_a_cache_in_float32_serves_a_unet_in_bfloat16(unet):
    adapters, cache, strength = moved_adapters(unet), cache_of(unet), torch.tensor([1.0, 0.5])
    rounded, (sample, timesteps, text) = tiny_unet().to(torch.bfloat16), inputs()
    with conditioned(rounded, adapters, cache, strength):
        found = predict(rounded, sample.bfloat16(), timesteps, text.bfloat16())
    plain = predict(unet, sample, timesteps, text)
    with conditioned(unet, adapters, cache, strength):
        expected = predict(unet, sample, timesteps, text)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.1 * (plain - expected).abs().mean()


def test_saved_adapters_load_equal(unet, tmp_path):
    adapters = moved_adapters(unet)
    adapters.save_pretrained(tmp_path / "adapters")
    loaded = AdapterSet.from_pretrained(tmp_path / "adapters")
    assert loaded.layers == adapters.layers == DEFAULT_LAYERS
    assert all(torch.equal(tensor, loaded.tensors()[name]) for name, tensor in adapters.tensors().items())


def test_adapters_of_another_backbone_are_refused(tmp_path):
    one = load_backbone(save_tiny_stable_diffusion(tmp_path / "one"))
    other = load_backbone(save_tiny_stable_diffusion(tmp_path / "other", seed=1))
    AdapterSet.for_unet(one.unet, backbone_identity=one.identity).save_pretrained(tmp_path / "adapters")
    AdapterSet.from_pretrained(tmp_path / "adapters", one)
    with pytest.raises(ValueError, match="belong to the backbone"):
        AdapterSet.from_pretrained(tmp_path / "adapters", other)


def test_wrong_layers_files_and_nesting_are_named(unet, tmp_path):
    with pytest.raises(ValueError, match=r"no spatial transformer 'mid_block.resnets.0'; it has .*mid_block"):
        AdapterSet.for_unet(unet, ["mid_block.resnets.0"])
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        AdapterSet.from_pretrained(tmp_path)
    adapters = AdapterSet.for_unet(unet, DEFAULT_LAYERS[:1])
    with pytest.raises(ValueError, match="to_q.weight is missing"):
        adapters.load_tensors({}, "the file")
    adapters.save_pretrained(tmp_path)
    (tmp_path / "adapters.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read"):
        AdapterSet.from_pretrained(tmp_path)
    cache = cache_of(unet)
    other = FeatureCache({DEFAULT_LAYERS[1]: cache.features[DEFAULT_LAYERS[1]]})
    with conditioned(unet, adapters, cache):
        with pytest.raises(ValueError, match="conditioned already"), conditioned(unet, adapters, cache):
            pass
    with pytest.raises(ValueError, match="lacks the layer"), conditioned(unet, adapters, other):
        pass
    with pytest.raises(ValueError, match=r"strength must be a number or have the shape \(B,\), not \(2, 1\)"):
        with conditioned(unet, adapters, cache, torch.ones(2, 1)):
            pass


def test_unets_that_do_not_fit_are_named(unet):
    adapters, cache = AdapterSet.for_unet(unet, DEFAULT_LAYERS[:1]), cache_of(unet)
    with pytest.raises(ValueError, match=r"do not fit this U-Net: mid_block.attentions.0 is .*heads=4\) in it, not"):
        with conditioned(tiny_unet(attention_head_dim=4), adapters, cache):
            pass
    narrow = FeatureCache({DEFAULT_LAYERS[0]: cache.features[DEFAULT_LAYERS[0]][:, :16]})
    with pytest.raises(ValueError, match="has 16 channels: made for another U-Net"):
        with conditioned(unet, adapters, narrow):
            pass
    with pytest.raises(ValueError, match=r"mid_block.attentions.0 has 2 transformer blocks"):
        AdapterSet.for_unet(tiny_unet(transformer_layers_per_block=2))
    with pytest.raises(ValueError, match="no spatial transformer with plain self-attention"):
        AdapterSet.for_unet(tiny_unet(only_cross_attention=True))
