"""The arithmetic against numbers computed with the authors' network at a tiny size."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from dreamcache.adapters import AdapterSet
from dreamcache.cache import DEFAULT_LAYERS, FeatureCache, collect_features
from dreamcache.conditioning import conditioned

DATA = Path(__file__).parent / "data" / "official_tiny_v2.npz"


def seeded(name: str, shape: list[int]) -> torch.Tensor:
    seed = int(hashlib.sha256(("v2" + name).encode()).hexdigest()[:8], 16)
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def official_weights(names: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    weights = {}
    for name, shape in names.items():
        weight = seeded("model.diffusion_model." + name, shape)
        if len(shape) == 1:
            weight = 1 + 0.1 * weight if name.endswith("weight") else 0.1 * weight
        else:
            weight = weight / float(np.prod(shape[1:])) ** 0.5
        weights[name] = weight
    return weights


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128, 128), cross_attention_dim=64, attention_head_dim=(4, 8, 16, 16),
        use_linear_projection=True,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    data = np.load(DATA)
    weights = official_weights(dict(json.loads(str(data["names"]))))
    unet = tiny_unet()
    released = {n: w for n, w in weights.items() if "attn_mem" in n or "linear_cat" in n or "norm2_mem" in n}
    own = {"model.diffusion_model." + n: w for n, w in weights.items() if n not in released}
    unet.load_state_dict(convert_ldm_unet_checkpoint(own, {"layers_per_block": 2}), strict=True)
    file = tmp_path_factory.mktemp("released") / "cross_attention-1.pt"
    torch.save({"diffusion_model." + n: w for n, w in released.items()}, file)
    return unet, AdapterSet.from_released(file, unet), data


@torch.no_grad()
def test_agrees_with_the_authors_network(official):
    unet, adapters, data = official
    x, ref = seeded("x", [2, 4, 16, 16]), seeded("ref", [2, 4, 16, 16])
    text, null = seeded("c", [2, 7, 64]), seeded("n", [2, 7, 64])
    timesteps = torch.tensor([500, 20])
    features = collect_features(unet, ref, torch.tensor([1, 1]), null, DEFAULT_LAYERS)
    for index, layer in enumerate(DEFAULT_LAYERS):
        np.testing.assert_allclose(features[layer], data[f"memory_layer_{index}"], atol=1e-4)
    np.testing.assert_allclose(unet(x, timesteps, text).sample, data["eps_base"], atol=1e-4)
    with conditioned(unet, adapters, FeatureCache(features)):
        np.testing.assert_allclose(unet(x, timesteps, text).sample, data["eps"], atol=1e-4)
    assert np.abs(data["eps"] - data["eps_base"]).max() > 0.01
