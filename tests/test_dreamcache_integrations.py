"""The paper's alternatives: each kind of adapter at each place, saved and loaded; layers by part; other caches."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from test_dreamcache_adapters import inputs, moved_adapters, predict
from tiny_diffusion import tiny_unet

from dreamcache.adapters import AdapterSet
from dreamcache.cache import DEFAULT_LAYERS, FeatureCache, collect_features, layer_names
from dreamcache.conditioning import conditioned
from dreamcache.integrations import INTEGRATIONS

LAYERS = ("mid_block.attentions.0", "up_blocks.1.attentions.1")


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture(scope="module")
def cache(unet) -> FeatureCache:
    # At 16 x 16 the mid block is 2 x 2: over a single key attention would be constant.
    generator = torch.Generator().manual_seed(1)
    sample, text = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 7, 16, generator=generator)
    return FeatureCache(collect_features(unet, sample, torch.tensor([1]), text, LAYERS))


@pytest.mark.parametrize("name", list(INTEGRATIONS))
def test_fresh_ones_change_nothing_yet_all_tensors_learn(unet, cache, name):
    adapters, arguments = AdapterSet.for_unet(unet, LAYERS, integration=name), inputs(2)
    plain = predict(unet, *arguments)
    with conditioned(unet, adapters, cache):
        assert torch.equal(predict(unet, *arguments), plain)
    before = {key: tensor.clone() for key, tensor in adapters.tensors().items()}
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-3, weight_decay=0.0)
    sample, timesteps, text = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 7, 16)
    for _ in range(3):
        with conditioned(unet, adapters, cache):
            F.mse_loss(unet(sample, timesteps, text).sample, torch.ones_like(sample)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [key for key, tensor in adapters.tensors().items() if torch.equal(tensor, before[key])] == []


@pytest.mark.parametrize("name", list(INTEGRATIONS))
def test_strength_saving_and_restoring(unet, cache, name, tmp_path):
    adapters, arguments = moved_adapters(unet, LAYERS, integration=name), inputs(2)
    plain, modules = predict(unet, *arguments), [module for _, module in unet.named_modules()]
    adapters.save_pretrained(tmp_path)
    loaded = AdapterSet.from_pretrained(tmp_path)
    assert loaded.config == adapters.config and loaded.config.integration == name
    with conditioned(unet, loaded, cache):
        full = predict(unet, *arguments)
    assert not torch.allclose(full, plain, atol=1e-4)
    with conditioned(unet, adapters, cache):
        assert torch.equal(predict(unet, *arguments), full)
    with conditioned(unet, adapters, cache, torch.tensor([1.0, 0.0])):
        mixed = predict(unet, *arguments)
    torch.testing.assert_close(mixed, torch.stack([full[0], plain[1]]), rtol=1e-5, atol=1e-5)
    assert torch.equal(predict(unet, *arguments), plain)
    assert all(a is b for a, (_, b) in zip(modules, unet.named_modules(), strict=True))


def reference_attention(adapter, query, context, to_q, norm=None):
    """Attention written out head by head, as the papers have it."""
    heads, width = adapter.shape.heads, adapter.shape.width
    q = F.linear(query if norm is None else norm(query), to_q)
    k, v = adapter.to_k(context), adapter.to_v(context)
    outs = []
    for head in torch.arange(width).chunk(heads):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / (width / heads) ** 0.5
        outs.append(scores.softmax(-1) @ v[..., head])
    return torch.cat(outs, dim=-1)


@pytest.mark.parametrize("name", list(INTEGRATIONS))
@torch.no_grad()
def test_a_block_computes_its_formula(unet, cache, name):
    """One transformer block under conditioning against the formula, from the block's own frozen modules."""
    layer = LAYERS[1]
    adapters = moved_adapters(unet, [layer], integration=name)
    adapter, block = adapters[layer], unet.get_submodule(layer).transformer_blocks[0]
    context = cache.features[layer].flatten(2).transpose(1, 2)
    x, text = torch.randn(1, 16, 32), torch.randn(1, 7, 16)
    attended = block.attn1(block.norm1(x))
    if name == "spatial_concat":
        cached = adapter.to_out(reference_attention(adapter, x, context, adapter.to_q.weight, adapter.norm))
        attended = adapter.proj(torch.cat([attended, cached], dim=-1))
    if name == "spatial_sum":
        attended += adapter.to_out(reference_attention(adapter, x, context, adapter.to_q.weight, adapter.norm))
    hidden = x + attended
    normed = block.norm2(hidden)
    by_text = block.attn2(normed, encoder_hidden_states=text)
    if name == "textual_sum":
        summed = reference_attention(adapter, normed, context, block.attn2.to_q.weight)
        by_text += summed @ block.attn2.to_out[0].weight.T
    hidden = hidden + by_text
    hidden = hidden + block.ff(block.norm3(hidden))
    if name == "decoupled_blocks":
        hidden += adapter.to_out(reference_attention(adapter, hidden, context, adapter.to_q.weight, adapter.norm))
        values, gate = adapter.ff_in(adapter.norm_ff(hidden)).chunk(2, dim=-1)
        hidden = hidden + adapter.ff_out(values * F.gelu(gate))
    with conditioned(unet, adapters, cache):
        conditioned_block = unet.get_submodule(layer).transformer_blocks[0]
        result = conditioned_block(x, encoder_hidden_states=text)
    torch.testing.assert_close(result, hidden, rtol=1e-4, atol=1e-5)


def test_parts_are_read_off_the_unet(unet):
    assert layer_names(unet, ("mid", "decoder")) == DEFAULT_LAYERS
    encoder = tuple(f"down_blocks.{level}.attentions.1" for level in range(3))
    assert layer_names(unet, ("encoder",)) == encoder
    assert AdapterSet.for_unet(unet, ("encoder", "mid")).layers == (*encoder, "mid_block.attentions.0")
    with pytest.raises(ValueError, match="no spatial transformer 'middle'; it has down_blocks"):
        AdapterSet.for_unet(unet, ("middle",))
    for nothing in ((), ("decoder",)):
        with pytest.raises(ValueError, match="no layer of the U-Net goes by"):
            layer_names(unet.mid_block, nothing)


def test_a_single_resolution_reads_the_mid_block_alone(unet, cache, tmp_path):
    adapters = moved_adapters(unet, single_resolution=True)
    assert adapters.layers == DEFAULT_LAYERS and adapters.cached_layers == DEFAULT_LAYERS[:1]
    assert [adapters[layer].shape.context_width for layer in adapters.layers] == [32] * 5
    adapters.save_pretrained(tmp_path)
    mid = FeatureCache({DEFAULT_LAYERS[0]: cache.features[DEFAULT_LAYERS[0]]})
    arguments = inputs(1)
    with conditioned(unet, AdapterSet.from_pretrained(tmp_path), mid):
        assert not torch.allclose(predict(unet, *arguments), predict(tiny_unet(), *arguments), atol=1e-4)


def test_another_timestep_and_a_damaged_configuration_are_named(unet, cache, tmp_path):
    adapters = AdapterSet.for_unet(unet, LAYERS, cache_timestep=300, cache_prompt="a photo of a {subject}")
    assert adapters.cache_settings("red teapot") == {
        "layers": LAYERS,
        "prompt": "a photo of a red teapot",
        "timestep": 300,
    }
    at_one = FeatureCache(cache.features, settings={"timestep": 1})
    with pytest.raises(ValueError, match="made at timestep 1, the adapters were .* timestep 300"):
        with conditioned(unet, adapters, at_one):
            pass
    with conditioned(unet, adapters, FeatureCache(cache.features, settings={"timestep": 300})):
        pass
    for without in ("", ["red teapot", ""]):
        with pytest.raises(ValueError, match="these adapters read the subject's noun"):
            adapters.cache_settings(without)
    textless = FeatureCache(cache.features, settings={"timestep": 300, "prompt": ""})
    with pytest.raises(ValueError, match="made without text, the adapters were trained with caches with"):
        with conditioned(unet, adapters, textless):
            pass
    for text in ("a teapot", ["", "a teapot"]):
        told = FeatureCache(cache.features, settings={"timestep": 1, "prompt": text})
        with pytest.raises(ValueError, match="made with text, the adapters were trained with caches without"):
            with conditioned(unet, AdapterSet.for_unet(unet, LAYERS), told):
                pass
    adapters.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("spatial_concat", "temporal_sum"))
    with pytest.raises(ValueError, match="cannot be read .*integration"):
        AdapterSet.from_pretrained(tmp_path)
    for damaged in (b"[]", b'{"layers": []}', b'{"layers": {"mid": 1}}', b"{", b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(damaged)
        with pytest.raises(ValueError, match="the adapters in .* cannot be read"):
            AdapterSet.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="integration"):
        AdapterSet.for_unet(unet, LAYERS, integration="temporal_sum")
