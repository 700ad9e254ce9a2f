"""A start of the adapters from the layers' own self-attention, for trainings too short to find it (not in the paper).

From random weights an adapter has first to learn what a place in the image should look for in the reference. The
layer's self-attention knows already, but reads the block's normed input, where the cache holds the transformer's
input. A linear map takes nearly all of the way from one to the other, and least squares finds it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dreamcache.adapters import AdapterSet
from dreamcache.cache import FeatureCache, UNet, find_layer, unwrap
from dreamcache.integrations import SpatialConcat

# Of the features' mean square; keeps the least squares solvable where channels depend on each other.
_RIDGE = 1e-4


@torch.no_grad()
def start_from_self_attention(unet: UNet, adapters: AdapterSet, caches: Iterable[FeatureCache]) -> None:
    """Let fresh adapters attend to a cache as each layer's self-attention would to the reference's own tokens.

    Queries, output and norm are copies; keys and values are the linear maps of the features in `caches` that come
    nearest to the self-attention's. The projection stays as it is, so the adapters still change nothing. ValueError
    where the attention to the cache is not beside a self-attention that reads the same layer.
    """
    unet = unwrap(unet)
    if not adapters.config.reads_beside_self_attention:
        raise ValueError("only spatial_concat adapters at several resolutions can start from the self-attention")
    moments: dict[str, Tensor] = {}
    for cache in caches:
        for layer in adapters.layers:
            rows = _rows(find_layer(unet, layer), cache.features[layer])
            moments[layer] = moments.get(layer, 0) + rows.T @ rows
    for layer, products in moments.items():
        adapter, block = adapters[layer], find_layer(unet, layer).transformer_blocks[0]
        assert isinstance(adapter, SpatialConcat)
        keys_and_values, constant = _least_squares(products, adapter.shape.context_width)
        keys, values = keys_and_values.split(adapter.shape.width, dim=1)
        adapter.norm.load_state_dict(block.norm1.state_dict())
        adapter.to_q.weight.copy_(block.attn1.to_q.weight)
        adapter.to_k.weight.copy_(keys.T)  # what is added to all keys alike changes no attention
        adapter.to_v.weight.copy_(values.T)
        out = block.attn1.to_out[0]
        adapter.to_out.weight.copy_(out.weight)
        # Attention weights sum to one, so what is added to all values goes through into the bias.
        adapter.to_out.bias.copy_(out.bias + constant[adapter.shape.width :].to(out.weight) @ out.weight.T)


def _rows(transformer: nn.Module, features: Tensor) -> Tensor:
    """Per token: its features, a one, and the self-attention's key and value; (tokens, C + 1 + 2 d), float64."""
    module: Any = transformer
    block, hidden = module.transformer_blocks[0], module.norm(features)
    if module.use_linear_projection:
        hidden = module.proj_in(hidden.flatten(2).transpose(1, 2))
    else:
        hidden = module.proj_in(hidden).flatten(2).transpose(1, 2)
    hidden = block.norm1(hidden)
    tokens = features.flatten(2).transpose(1, 2)
    parts = [tokens, torch.ones_like(tokens[..., :1]), block.attn1.to_k(hidden), block.attn1.to_v(hidden)]
    return torch.cat(parts, dim=-1).flatten(0, 1).double()


def _least_squares(products: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """The map (inputs, outputs) and the constant (outputs) with the least error, from the rows' sums of products."""
    left, right = products[: inputs + 1, : inputs + 1].clone(), products[: inputs + 1, inputs + 1 :]
    diagonal = left.diagonal()[:inputs]
    diagonal += _RIDGE * diagonal.mean()
    solution = torch.linalg.solve(left, right)
    return solution[:inputs], solution[inputs]
