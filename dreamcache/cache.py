"""The feature cache: what the U-Net makes of a reference image, kept for sampling (paper Section 3.1)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamcache.reference import reference_image, to_tensor

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone

# diffusers.UNet2DConditionModel, whose base class has no types that mypy could follow.
UNet: TypeAlias = Any

# The mid block's transformer and every second one of the decoder (paper Section 3.1, Table 5).
DEFAULT_LAYERS = (
    "mid_block.attentions.0",
    "up_blocks.1.attentions.1",
    "up_blocks.2.attentions.0",
    "up_blocks.2.attentions.2",
    "up_blocks.3.attentions.1",
)
# The least noisy timestep gives the best features (paper Section 3.1, Table S3).
CACHE_TIMESTEP = 1


@dataclass(frozen=True)
class FeatureCache:
    """A layer's dotted module name -> its input for R references, (R, C, H, W); with what it was made of."""

    features: Mapping[str, Tensor]
    backbone_identity: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("a feature cache needs at least one layer")

    @property
    def references(self) -> int:
        """The number R of references."""
        return next(iter(self.features.values())).shape[0]

    def select(self, rows: Sequence[int]) -> "FeatureCache":
        """A cache of the given references, in the given order; one may come several times."""
        index = list(rows)
        return FeatureCache({n: t[index] for n, t in self.features.items()}, self.backbone_identity, self.settings)

    def to(self, device: str | torch.device) -> "FeatureCache":
        """The cache on another device."""
        return FeatureCache({n: t.to(device) for n, t in self.features.items()}, self.backbone_identity, self.settings)

    @classmethod
    def stack(cls, caches: Sequence["FeatureCache"]) -> "FeatureCache":
        """One cache that holds the references of several, for images of several subjects in one batch.

        ValueError if they come from different backbones, layers or image sizes.
        """
        if not caches:
            raise ValueError("there is no feature cache to stack")
        first = caches[0]
        for other in caches[1:]:
            same_shapes = {n: t.shape[1:] for n, t in first.features.items()} == {
                n: t.shape[1:] for n, t in other.features.items()
            }
            if not same_shapes or other.backbone_identity != first.backbone_identity:
                raise ValueError("feature caches of different backbones, layers or image sizes cannot be stacked")
        features = {name: torch.cat([cache.features[name] for cache in caches]) for name in first.features}
        return cls(features, first.backbone_identity, first.settings)

    def save(self, path: str | Path) -> None:
        """Write the cache as one safetensors file, its settings in the header."""
        header = {"backbone_identity": self.backbone_identity, "settings": dict(self.settings)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.features.items()}
        save_file(tensors, path, metadata={"feature_cache": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "FeatureCache":
        """Read a cache that `save` wrote; FileNotFoundError or ValueError if there is none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no feature cache at {path}")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = json.loads(file.metadata()["feature_cache"])
                features = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no feature cache ({error}): make it again with cache_reference") from error
        return cls(features, header["backbone_identity"], header["settings"])


def cache_reference(
    backbone: "Backbone",
    reference: Image.Image | Sequence[Image.Image] | Tensor,
    seed: int = 0,
    layers: Sequence[str] = DEFAULT_LAYERS,
    prompt: str = "",
) -> FeatureCache:
    """Cache one or more references: one U-Net pass at t = 1 with seeded noise and null text (paper Eq. 1 and 2).

    A reference is an RGBA cut-out or an image on white (see `reference_image`), or a tensor (R, 3, H, W) in [-1, 1].
    Every reference gets the same noise, so that its features do not depend on its company. Layers are dotted module
    names, by default the paper's five. The pass stops at the last of them.
    """
    if not isinstance(reference, Tensor):
        images = [reference] if isinstance(reference, Image.Image) else list(reference)
        reference = torch.stack([to_tensor(reference_image(image, size=backbone.image_size)) for image in images])
    latents = backbone.encode_images(reference)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape[1:], generator=generator).to(latents).expand_as(latents)
    features = reference_features(backbone, latents, noise, layers, backbone.encode_prompts([prompt]))
    settings = {"timestep": CACHE_TIMESTEP, "seed": seed, "prompt": prompt, "image_size": reference.shape[-1]}
    return FeatureCache(features, backbone.identity, settings)


def reference_features(
    backbone: "Backbone", latents: Tensor, noise: Tensor, layers: Sequence[str], text: Tensor
) -> dict[str, Tensor]:
    """The layers' inputs for reference latents (R, C, h, w) with the noise of t = 1; text is (1, L, D)."""
    timesteps = torch.full((latents.shape[0],), CACHE_TIMESTEP, device=latents.device)
    noisy = backbone.add_noise(latents, noise, timesteps)
    return collect_features(backbone.unet, noisy, timesteps, text.expand(latents.shape[0], -1, -1), layers)


class _AllCollected(Exception):
    """Leaves the U-Net's forward pass once the last layer has been seen."""


@torch.no_grad()
def collect_features(
    unet: UNet, sample: Tensor, timesteps: Tensor, text: Tensor, layers: Sequence[str]
) -> dict[str, Tensor]:
    """The inputs (B, C, H, W) of spatial transformers, before their GroupNorm and `proj_in`, in the order of layers.

    The U-Net must be plain, not conditioned. The pass ends with the last of the layers.
    """
    unet = unwrap(unet)
    features: dict[str, Tensor] = {}
    modules = {layer: find_layer(unet, layer) for layer in layers}

    def collector(layer: str) -> Any:
        def collect(module: nn.Module, args: tuple[Any, ...]) -> None:
            features[layer] = args[0]
            if len(features) == len(modules):
                raise _AllCollected

        return collect

    hooks = [module.register_forward_pre_hook(collector(layer)) for layer, module in modules.items()]
    try:
        # Not through unet(): a module compiled in place would be traced with these hooks.
        unet.forward(sample, timesteps, encoder_hidden_states=text)
    except _AllCollected:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: features[layer] for layer in layers}


def find_layer(unet: UNet, layer: str) -> Any:
    """The spatial transformer of that dotted name; ValueError names those that there are."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    try:
        module = unet.get_submodule(layer)
    except AttributeError:
        module = None
    if not isinstance(module, Transformer2DModel):
        known = [name for name, child in unet.named_modules() if isinstance(child, Transformer2DModel)]
        raise ValueError(f"the U-Net has no spatial transformer {layer!r}; it has {', '.join(known)}")
    return module


def unwrap(unet: Any) -> UNet:
    """The module behind torch.compile's wrapper."""
    return getattr(unet, "_orig_mod", unet)
