import pytest
import torch
from diffusers import UNet2DConditionModel
from test_dreamcache_adapters import inputs, moved_adapters

from dreamcache.cache import FeatureCache, collect_features
from dreamcache.conditioning import conditioned

LAYERS = ("mid_block.attentions.0", "up_blocks.1.attentions.0")


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def cache_of(unet: UNet2DConditionModel, seed: int) -> FeatureCache:
    return FeatureCache(collect_features(unet, *inputs(1, seed), LAYERS))


@pytest.mark.parametrize("in_place", [False, True])
@torch.no_grad()
def test_compiled_unet_is_right_plain_conditioned_and_plain_again(in_place):
    graphs = []

    def counting_backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    unet, eager = small_unet(), small_unet()
    adapters = moved_adapters(unet, LAYERS)
    if in_place:
        unet.compile(backend=counting_backend)
        compiled = unet
    else:
        compiled = torch.compile(unet, backend=counting_backend)
    arguments = inputs(4)
    caches = [cache_of(eager, seed=seed) for seed in (1, 2)]
    plain = compiled(*arguments).sample
    torch.testing.assert_close(plain, eager(*arguments).sample, rtol=1e-5, atol=1e-5)
    counts = []
    for cache in caches:
        with conditioned(compiled, adapters, cache, torch.tensor([1.0, 1.0, 0.0, 0.0])):
            result = compiled(*arguments).sample
        with conditioned(eager, adapters, cache, torch.tensor([1.0, 1.0, 0.0, 0.0])):
            torch.testing.assert_close(result, eager(*arguments).sample, rtol=1e-5, atol=1e-5)
        counts.append(len(graphs))
    assert torch.equal(compiled(*arguments).sample, plain)
    # Another cache, and the plain U-Net again, run what was compiled before.
    assert counts[0] == counts[1] == len(graphs)
