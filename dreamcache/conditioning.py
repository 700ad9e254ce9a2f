"""The one seam where adapters and feature cache enter the U-Net (paper Section 3.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamcache.adapters import AdapterSet, cached_layer, layer_shape
from dreamcache.cache import FeatureCache, UNet, find_layer, unwrap
from dreamcache.integrations import ConditioningAdapter


@dataclass(frozen=True)
class _RowStrength:
    """How many leading rows of how large a batch are conditioned at all (None: all of any batch), and their scale.

    The scale is None where it is 1.
    """

    batch: int | None
    rows: int | None
    scale: Tensor | float | None


class StandIn(nn.Module):
    """Stands in for a module of a layer while that is conditioned: the module's output plus s times a change.

    The output is exactly the module's own at s = 0 and for fresh adapters, in any floating point format, and the
    paper's Eq. 5 at s = 1 (see `integrations`). All that does not depend on the image under generation, above all the
    reference's keys and values, is worked out here, once for all denoising steps.
    """

    def __init__(
        self, norm: nn.Module, own: nn.Module, adapter: ConditioningAdapter, features: Tensor, strength: _RowStrength
    ) -> None:
        super().__init__()
        self.norm, self.own = norm, own
        self.integration, self.heads = type(adapter), adapter.shape.heads
        weight = next(own.parameters())
        self.prepared = adapter.prepared(own, features.to(weight).flatten(2).transpose(1, 2))
        self.keys = self._split_heads(self.prepared["keys"])
        self.values = self._split_heads(self.prepared["values"])
        self.batch, self.rows, self.scale = strength.batch, strength.rows, strength.scale
        if isinstance(self.scale, Tensor):
            self.scale = self.scale.to(weight)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.batch is not None and self.batch != hidden_states.shape[0]:
            raise ValueError(f"strength has {self.batch} rows, the U-Net's batch {hidden_states.shape[0]}")
        output = self.own(self.norm(hidden_states), *args, **kwargs)
        rows = hidden_states.shape[0] if self.rows is None else self.rows
        conditioned_rows = output[:rows]
        query = self.integration.query(self.prepared, hidden_states[:rows], conditioned_rows)
        change = self.integration.change(self.prepared, conditioned_rows, self.attend(query))
        if self.scale is not None:
            change = change * self.scale
        if rows == hidden_states.shape[0]:
            return output + change
        return torch.cat([conditioned_rows + change, output[rows:]])

    def attend(self, query: Tensor) -> Tensor:
        """Attention of a query (B, N, d) to the cache; row i reads the cache's row i modulo its number of rows."""
        batch, length, width = query.shape
        references = self.keys.shape[0]
        if batch % references:
            raise ValueError(f"{batch} conditioned rows cannot be shared out among a cache of {references} references")
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
    require_plain(unet)
    _check_cache(adapters, cache)
    substitutions: list[tuple[nn.Module, str, nn.Module]] = []
    for layer in adapters.layers:
        adapter, source = adapters[layer], cached_layer(adapters.config, layer)
        transformer = find_layer(unet, layer)
        if source not in cache.features:
            raise ValueError(f"the feature cache lacks the layer {source}: cache the adapters' layers")
        if (shape := layer_shape(unet, layer, source)) != adapter.shape:
            raise ValueError(f"the adapters do not fit this U-Net: {layer} is {shape} in it, not {adapter.shape}")
        features = cache.features[source]
        if features.shape[1] != adapter.shape.context_width:
            raise ValueError(f"the feature cache of {source} has {features.shape[1]} channels: made for another U-Net")
        block = transformer.transformer_blocks[0]
        if adapter.place == "self-attention":
            # The stand-in needs the block's own input, so the block's first norm moves into it.
            stand_in = StandIn(block.norm1, block.attn1, adapter, features, by_row)
            substitutions += [(block, "norm1", nn.Identity()), (block, "attn1", stand_in)]
        elif adapter.place == "text attention":
            substitutions.append((block, "attn2", StandIn(nn.Identity(), block.attn2, adapter, features, by_row)))
        else:
            stand_in = StandIn(nn.Identity(), block, adapter, features, by_row)
            substitutions.append((transformer.transformer_blocks, "0", stand_in))
    originals = [getattr(parent, name) for parent, name, _ in substitutions]
    try:
        for parent, name, module in substitutions:
            setattr(parent, name, module)
        yield
    finally:
        for (parent, name, _), module in zip(substitutions, originals, strict=True):
            setattr(parent, name, module)


def require_plain(unet: UNet) -> None:
    """ValueError where the U-Net attends to a feature cache."""
    if any(isinstance(module, StandIn) for module in unwrap(unet).modules()):
        raise ValueError("the U-Net is conditioned already: leave the outer `conditioned` first")


def _check_cache(adapters: AdapterSet, cache: FeatureCache) -> None:
    if None not in (adapters.backbone_identity, cache.backbone_identity):
        if adapters.backbone_identity != cache.backbone_identity:
            raise ValueError("the feature cache was made with another backbone than the adapters: cache it again")
    timestep = cache.settings.get("timestep", adapters.config.cache_timestep)
    if timestep != adapters.config.cache_timestep:
        raise ValueError(
            f"the feature cache was made at timestep {timestep}, the adapters were trained with caches of timestep "
            f"{adapters.config.cache_timestep}: cache the reference at that one"
        )
    prompt = cache.settings.get("prompt")
    if prompt is not None and any(prompt) != bool(adapters.config.cache_prompt):
        made, trained = ("with", "without") if any(prompt) else ("without", "with")
        raise ValueError(
            f"the feature cache was made {made} text, the adapters were trained with caches {trained}: cache the "
            "reference by what their cache_settings() say"
        )


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
