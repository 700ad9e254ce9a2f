"""The one seam where adapters and feature cache enter the U-Net (paper Section 3.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamcache.adapters import AdapterSet, ConditioningAdapter, layer_shape
from dreamcache.cache import FeatureCache, UNet, find_layer, unwrap


@dataclass(frozen=True)
class _RowStrength:
    """How many leading rows of how large a batch are conditioned at all (None: all of any batch), and their scale.

    The scale is None where it is 1.
    """

    batch: int | None
    rows: int | None
    scale: Tensor | float | None


class ConditionedSelfAttention(nn.Module):
    """Stands in for a transformer block's `norm1` and `attn1` while the layer is conditioned.

    The output is a + s * ((W_a - I) a + W_c a_c + b), where a is the block's own self-attention, a_c the attention
    to the cache, [W_a | W_c] and b the projection, and s the strength: the paper's Eq. 5 at s = 1, and exactly a at
    s = 0 and for fresh adapters, in any floating point format.
    All that does not depend on the image under generation is worked out here, once for all denoising steps: keys and
    values, and `to_out` folded into the projection.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn1: nn.Module,
        adapter: ConditioningAdapter,
        features: Tensor,
        strength: "_RowStrength",
    ) -> None:
        super().__init__()
        self.norm1, self.attn1 = norm1, attn1
        self.heads, self.norm_eps = adapter.shape.heads, adapter.norm.eps
        weight = next(attn1.parameters())
        self.batch, self.rows = strength.batch, strength.rows

        def ready(tensor: Tensor) -> Tensor:
            return tensor.to(weight.device, weight.dtype)

        width = adapter.shape.width
        self.scale = ready(strength.scale) if isinstance(strength.scale, Tensor) else strength.scale
        self.norm_weight, self.norm_bias = ready(adapter.norm.weight), ready(adapter.norm.bias)
        self.query_weight = ready(adapter.to_q.weight)
        context = ready(features).flatten(2).transpose(1, 2)
        self.keys = self._split_heads(F.linear(context, ready(adapter.to_k.weight)))
        self.values = self._split_heads(F.linear(context, ready(adapter.to_v.weight)))
        from_self, from_cache = adapter.proj.weight.split(width, dim=1)
        self.self_weight = ready(from_self - torch.eye(width, dtype=from_self.dtype, device=from_self.device))
        self.cache_weight = ready(from_cache @ adapter.to_out.weight)
        self.bias = ready(adapter.proj.bias + from_cache @ adapter.to_out.bias)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if self.batch is not None and self.batch != hidden_states.shape[0]:
            raise ValueError(f"strength has {self.batch} rows, the U-Net's batch {hidden_states.shape[0]}")
        attention = self.attn1(self.norm1(hidden_states), **kwargs)
        rows = hidden_states.shape[0] if self.rows is None else self.rows
        conditioned_rows = attention[:rows]
        change = F.linear(conditioned_rows, self.self_weight, self.bias)
        change = change + F.linear(self._attend(hidden_states[:rows]), self.cache_weight)
        if self.scale is not None:
            change = change * self.scale
        if rows == hidden_states.shape[0]:
            return attention + change
        return torch.cat([conditioned_rows + change, attention[rows:]])

    def _attend(self, hidden_states: Tensor) -> Tensor:
        """Attention of (B, N, d) to the cache; row i reads the cache's row i modulo its number of rows."""
        batch, length, width = hidden_states.shape
        references = self.keys.shape[0]
        if batch % references:
            raise ValueError(f"{batch} conditioned rows cannot be shared out among a cache of {references} references")
        normed = F.layer_norm(hidden_states, (width,), self.norm_weight, self.norm_bias, self.norm_eps)
        query = F.linear(normed, self.query_weight)
        # Rows of one reference become one long query, so its keys and values are read once and never repeated.
        query = query.view(batch // references, references, length, self.heads, -1).permute(1, 3, 0, 2, 4)
        query = query.reshape(references, self.heads, batch // references * length, -1)
        out = F.scaled_dot_product_attention(query, self.keys, self.values)
        out = out.view(references, self.heads, batch // references, length, -1).permute(2, 0, 3, 1, 4)
        return out.reshape(batch, length, width)

    def _split_heads(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(2, (self.heads, -1)).transpose(1, 2)


@contextmanager
def conditioned(
    unet: UNet,
    adapters: AdapterSet | None,
    cache: FeatureCache | None,
    strength: float | Tensor = 1.0,
) -> Iterator[None]:
    """Within this context the U-Net attends to a feature cache; after it, it is bit for bit itself again.

    `strength` scales the adapters' change: a number, or (B,) for the U-Net's B rows; 0 is exactly the plain U-Net, 1
    the conditioned one (paper Eq. 5). A cache of R references serves any number of conditioned rows that R divides:
    row i reads reference i modulo R. Without adapters or cache nothing changes. ValueError if adapters and cache do
    not fit the U-Net or each other.
    """
    if adapters is None or cache is None:
        yield
        return
    by_row = _strength_by_row(strength, cache.references)
    if by_row.rows == 0:
        yield
        return
    unet = unwrap(unet)
    if None not in (adapters.backbone_identity, cache.backbone_identity):
        if adapters.backbone_identity != cache.backbone_identity:
            raise ValueError("the feature cache was made with another backbone than the adapters: cache it again")
    blocks: list[tuple[nn.Module, nn.Module, nn.Module]] = []
    replacements: list[ConditionedSelfAttention] = []
    for layer in adapters.layers:
        adapter = adapters[layer]
        block = find_layer(unet, layer).transformer_blocks[0]
        if isinstance(block.attn1, ConditionedSelfAttention):
            raise ValueError("the U-Net is conditioned already: leave the outer `conditioned` first")
        if layer not in cache.features:
            raise ValueError(f"the feature cache lacks the layer {layer}: cache the adapters' layers")
        if (shape := layer_shape(unet, layer)) != adapter.shape:
            raise ValueError(f"the adapters do not fit this U-Net: {layer} is {shape} in it, not {adapter.shape}")
        features = cache.features[layer]
        if features.shape[1] != adapter.shape.context_width:
            raise ValueError(f"the feature cache of {layer} has {features.shape[1]} channels: made for another U-Net")
        blocks.append((block, block.norm1, block.attn1))
        replacements.append(ConditionedSelfAttention(block.norm1, block.attn1, adapter, features, by_row))
    try:
        for (block, _, _), replacement in zip(blocks, replacements, strict=True):
            # The replacement needs the block's own input, so the block's first norm moves into it.
            block.norm1, block.attn1 = nn.Identity(), replacement
        yield
    finally:
        for block, norm1, attn1 in blocks:
            block.norm1, block.attn1 = norm1, attn1


def _strength_by_row(strength: float | Tensor, references: int) -> _RowStrength:
    if not isinstance(strength, Tensor):
        return _RowStrength(None, 0 if strength == 0 else None, None if strength == 1 else float(strength))
    if strength.ndim != 1:
        raise ValueError(f"strength must be a number or have the shape (B,), not {tuple(strength.shape)}")
    nonzero = strength.nonzero()
    rows = 0 if len(nonzero) == 0 else int(nonzero[-1]) + 1
    # Whole rounds of references, so that every row still reads its own.
    rows = min(len(strength), -(-rows // references) * references)
    leading = strength[:rows]
    return _RowStrength(len(strength), rows, None if bool((leading == 1).all()) else leading[:, None, None])
