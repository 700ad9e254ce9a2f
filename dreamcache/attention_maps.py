"""Attention maps: where in the reference a region of a generated image looks (paper Section 4.4, Figure 5)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

from dreamcache.adapters import AdapterSet, cached_layer
from dreamcache.cache import FeatureCache, UNet, cache_reference, find_layer, unwrap
from dreamcache.conditioning import StandIn
from dreamcache.configs import SamplingConfig
from dreamcache.reference import reference_image, reference_mask
from dreamcache.sampling import sample_images

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone

# A box in the generated image's pixels (left, top, right, bottom), the last two exclusive, or a mask (L) of its size.
Region: TypeAlias = tuple[int, int, int, int] | Image.Image
_TILE = 256


@dataclass(frozen=True)
class AttentionMaps:
    """What one generated image's pixels give to its reference's, by layer: (h, w, H, W) float32, means over heads and
    denoising steps.

    h and w are the generated image's, H and W the reference's; W spans all references that were joined. The weights
    of one pixel sum to 1. `image_size` is the generated image's side in pixels.
    """

    weights: Mapping[str, np.ndarray]
    image_size: int

    def seen_from(self, region: Region) -> dict[str, np.ndarray]:
        """Where a region looks, by layer: (H, W), summing to 1. ValueError if it is empty or outside the image."""
        mask = region if isinstance(region, Image.Image) else self._box(region)
        if mask.size != (self.image_size, self.image_size):
            raise ValueError(f"the mask is {mask.size[0]} x {mask.size[1]}, the image {self.image_size} pixels a side")
        if mask.getbbox() is None:
            raise ValueError("the mask marks no pixel of the generated image")
        seen = {}
        for layer, weights in self.weights.items():
            height, width = weights.shape[:2]
            cells = np.asarray(mask.convert("F").resize((width, height), Image.Resampling.BOX))
            seen[layer] = np.tensordot(cells / cells.sum(), weights, axes=2)
        return seen

    def subject_shares(self, region: Region, subjects: Sequence[Image.Image]) -> dict[str, tuple[float, float]]:
        """By layer, the share of a region's attention that the reference's subject gets, and its share of the area.

        `subjects` are the masks (L) of the references' subjects, as `reference_mask` makes them, in their order.
        """
        shares = {}
        for layer, seen in self.seen_from(region).items():
            height, width = seen.shape
            size = (width // len(subjects), height)
            parts = [np.asarray(mask.convert("F").resize(size, Image.Resampling.BOX)) / 255 for mask in subjects]
            covered = np.concatenate(parts, axis=1)
            shares[layer] = (float((seen * covered).sum()), float(covered.mean()))
        return shares

    def _box(self, box: tuple[int, int, int, int]) -> Image.Image:
        left, top, right, bottom = box
        if not (0 <= left < right <= self.image_size and 0 <= top < bottom <= self.image_size):
            raise ValueError(f"the box {box} is empty or outside the image, which has {self.image_size} pixels a side")
        mask = Image.new("L", (self.image_size, self.image_size), 0)
        mask.paste(255, box)
        return mask


def sample_with_attention(
    backbone: "Backbone",
    adapters: AdapterSet,
    cache: FeatureCache,
    prompt: str,
    config: SamplingConfig = SamplingConfig(),  # noqa: B008 (frozen)
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Image.Image, AttentionMaps]:
    """The image that `sample_images` gives, and the attention maps of its branch with reference and text.

    ValueError for a cache of several subjects; references of one may be joined. The U-Net must not be compiled.
    """
    if cache.references != 1:
        raise ValueError(f"attention maps are of one subject, the cache holds {cache.references}: join or select them")
    with _recorded(backbone.unet, adapters.layers) as means:
        (image,) = sample_images(backbone, adapters, cache, [prompt], config, seeds=[seed], progress=progress)
    maps = {}
    for layer, (total, count) in means.items():
        side = isqrt(total.shape[0])
        height, width = cache.features[cached_layer(adapters.config, layer)].shape[2:]
        maps[layer] = (total / count).view(side, side, height, width).cpu().numpy()
    return image, AttentionMaps(maps, image.width)


@contextmanager
def _recorded(unet: UNet, layers: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, int]]]:
    """Within this context, by layer, the sum of the first row's attention weights (N, M) and the number of passes.

    The stand-ins are there only while the U-Net is conditioned, so they are looked for when it runs; the weights are
    computed beside the attention itself, which stays as it is.
    """
    unet = unwrap(unet)
    sums: dict[str, tuple[Tensor, int]] = {}

    def watched(layer: str, stand_in: StandIn, attend: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def record(query: Tensor) -> Tensor:
            weights = _attention_weights(stand_in, query[0])
            total, count = sums.get(layer, (torch.zeros_like(weights), 0))
            sums[layer] = (total + weights, count + 1)
            return attend(query)

        return record

    def watch(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        for layer in layers:
            for stand_in in find_layer(unet, layer).modules():
                if isinstance(stand_in, StandIn) and "attend" not in vars(stand_in):
                    vars(stand_in)["attend"] = watched(layer, stand_in, stand_in.attend)

    hook = unet.register_forward_pre_hook(watch)
    try:
        yield sums
    finally:
        hook.remove()


def _attention_weights(stand_in: StandIn, query: Tensor) -> Tensor:
    """The weights (N, M) float32 that a query (N, d) gives to the first reference's tokens, a mean over heads."""
    queries, keys = query.float().chunk(stand_in.heads, dim=-1), stand_in.keys[0].float()
    # Head by head: all heads' weights at once would fill gigabytes at 64 x 64.
    total = torch.zeros(len(query), keys.shape[1], device=query.device)
    for head_query, head_keys in zip(queries, keys, strict=True):
        total += (head_query @ head_keys.T * head_query.shape[-1] ** -0.5).softmax(dim=-1)
    return total / stand_in.heads


def attention_picture(
    image: Image.Image,
    references: Sequence[Image.Image],
    maps: AttentionMaps,
    region: Region,
    shares: Mapping[str, tuple[float, float]],
) -> Image.Image:
    """The generated image with the region marked, and beside it the references under each layer's heat map, RGB.

    `references` are those that were joined, in their order, as `reference_image` makes them; `shares` stand below.
    """
    tiles = [(marked(image, region), "generated")]
    for layer, seen in maps.seen_from(region).items():
        attention, area = shares[layer]
        text = f"{layer}\n{seen.shape[0]} x {seen.shape[1]}; subject: {attention:.0%} of attention, {area:.0%} of area"
        tiles.append((heated(references, seen), text))
    picture = Image.new("RGB", (sum(tile.width for tile, _ in tiles) + 8 * len(tiles), _TILE + 36), "white")
    left = 0
    for tile, text in tiles:
        picture.paste(tile, (left, 0))
        ImageDraw.Draw(picture).multiline_text((left + 2, _TILE + 4), text, fill="black")
        left += tile.width + 8
    return picture


def marked(image: Image.Image, region: Region) -> Image.Image:
    """The generated image with a region's edge in red, RGB, 256 x 256."""
    shown = image.resize((_TILE, _TILE), Image.Resampling.BICUBIC)
    if isinstance(region, Image.Image):
        inside = region.convert("L").resize(shown.size).point(lambda value: 255 * (value >= 128))
        shown.paste("red", mask=ImageChops.difference(inside.filter(ImageFilter.MaxFilter(5)), inside))
    else:
        scale = _TILE / image.width
        ImageDraw.Draw(shown).rectangle([round(edge * scale) for edge in region], outline="red", width=2)
    return shown


def heated(references: Sequence[Image.Image], seen: np.ndarray) -> Image.Image:
    """The references side by side, 256 x 256 each, in grey under a layer's heat map; RGB.

    `seen` is what `AttentionMaps.seen_from` gives of the layer; the colours go from black over red and yellow to white.
    """
    ground = Image.new("RGB", (_TILE * len(references), _TILE))
    for place, reference in enumerate(references):
        ground.paste(reference.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (place * _TILE, 0))
    heat = Image.fromarray((seen / seen.max()).astype(np.float32)).resize(ground.size, Image.Resampling.BILINEAR)
    level = np.asarray(heat)[..., None]
    colours = np.clip(3 * level - np.arange(3), 0, 1) * 255
    grey = np.asarray(ground.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((0.3 * grey + 0.7 * colours).astype(np.uint8))


def write_attention_maps(
    folder: Path,
    backbone: "Backbone",
    adapters: AdapterSet,
    references: Sequence[Image.Image],
    prompt: str,
    region: Region,
    config: SamplingConfig,
    seed: int = 0,
    subject: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Sample an image and write it, its region's maps as `maps.npz` ((H, W) a layer) and `maps.png`, into a folder.

    `subject` is the subject's noun, for adapters trained with text in the cache; `progress` gets (steps done, steps).
    Returns `AttentionMaps.subject_shares`. ValueError for a region outside the image.
    """
    size = backbone.image_size
    cache = cache_reference(backbone, references, **adapters.cache_settings(subject)).joined()
    image, maps = sample_with_attention(backbone, adapters, cache, prompt, config, seed=seed, progress=progress)
    shares = maps.subject_shares(region, [reference_mask(reference, size=size) for reference in references])
    shown = [reference_image(reference, size=size) for reference in references]
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / "image.png")
    attention_picture(image, shown, maps, region, shares).save(folder / "maps.png")
    np.savez(folder / "maps.npz", **maps.seen_from(region))  # type: ignore[arg-type]
    return shares
