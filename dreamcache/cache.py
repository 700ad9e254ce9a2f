"""The feature cache: what the U-Net makes of a reference image, kept for sampling (paper Section 3.1)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dreamcache.reference import reference_image, to_tensor
from shards.files import replace_file

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
_PARTS = {"encoder": "down_blocks.", "mid": "mid_block.", "decoder": "up_blocks."}
# The least noisy timestep gives the best features (paper Section 3.1, Table S3).
CACHE_TIMESTEP = 1


@dataclass(frozen=True)
class FeatureCache:
    """A layer's dotted module name -> its input for R subjects, (R, C, H, W); with what it was made of.

    Several references of one subject may be joined, side by side: (1, C, H, n W) for n of them.
    """

    features: Mapping[str, Tensor]
    backbone_identity: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("a feature cache needs at least one layer")

    @property
    def references(self) -> int:
        """The number R of references; those that were joined count as one."""
        return next(iter(self.features.values())).shape[0]

    def select(self, rows: Sequence[int]) -> "FeatureCache":
        """A cache of the given references, in the given order; one may come several times."""
        index = list(rows)
        return FeatureCache({n: t[index] for n, t in self.features.items()}, self.backbone_identity, self.settings)

    def joined(self) -> "FeatureCache":
        """All references as one: images attend to the tokens of all of them, which should show one subject."""
        features = {
            name: tensor.permute(1, 2, 0, 3).flatten(2)[None].contiguous() for name, tensor in self.features.items()
        }
        settings = {**self.settings, "joined": self.references * self.settings.get("joined", 1)}
        return FeatureCache(features, self.backbone_identity, settings)

    def to(self, device: str | torch.device) -> "FeatureCache":
        """The cache on another device."""
        return FeatureCache({n: t.to(device) for n, t in self.features.items()}, self.backbone_identity, self.settings)

    @classmethod
    def stack(cls, caches: Sequence["FeatureCache"]) -> "FeatureCache":
        """One cache that holds the references of several, for images of several subjects in one batch.

        Where a different number of references was joined, they are repeated, which changes no result: attention to
        tokens that all come twice is attention to them once. ValueError if the caches come from different backbones,
        layers, timesteps or image sizes, or some were made with text and some without.
        """
        if not caches:
            raise ValueError("there is no feature cache to stack")
        first = caches[0]
        joined = [cache.settings.get("joined", 1) for cache in caches]
        common = math.lcm(*joined)
        features: dict[str, list[Tensor]] = {name: [] for name in first.features}
        for cache, count in zip(caches, joined, strict=True):
            same_origin = (
                cache.backbone_identity == first.backbone_identity
                and cache.settings.get("timestep") == first.settings.get("timestep")
                and cache.features.keys() == first.features.keys()
                and any(cache.settings.get("prompt") or "") == any(first.settings.get("prompt") or "")
            )
            for name in features if same_origin else ():
                features[name].append(cache.features[name].repeat(1, 1, 1, common // count))
            if not same_origin or any(tensors[-1].shape[1:] != tensors[0].shape[1:] for tensors in features.values()):
                raise ValueError(
                    "feature caches of different backbones, layers, timesteps or image sizes, or with and without "
                    "text, cannot be stacked"
                )
        settings = {**first.settings, "joined": common} if common > 1 else first.settings
        return cls({name: torch.cat(tensors) for name, tensors in features.items()}, first.backbone_identity, settings)

    def save(self, path: str | Path) -> None:
        """Write the cache as one safetensors file, its settings in the header."""
        header = {"backbone_identity": self.backbone_identity, "settings": dict(self.settings)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.features.items()}
        replace_file(Path(path), save(tensors, metadata={"feature_cache": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "FeatureCache":
        """Read a cache that `save` wrote; FileNotFoundError or ValueError if there is none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no feature cache at {path}")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = json.loads(file.metadata()["feature_cache"])
                features = {name: file.get_tensor(name) for name in file.keys()}
            return cls(features, header["backbone_identity"], header["settings"])
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no feature cache ({error}): make it again with cache_reference") from error


def cache_reference(
    backbone: "Backbone",
    reference: Image.Image | Sequence[Image.Image] | Tensor,
    seed: int = 0,
    layers: Sequence[str] = DEFAULT_LAYERS,
    prompt: str | Sequence[str] = "",
    timestep: int = CACHE_TIMESTEP,
) -> FeatureCache:
    """Cache one or more references: one U-Net pass at t = 1 with seeded noise and null text (paper Eq. 1 and 2).

    A reference is an RGBA cut-out or an image on white (see `reference_image`), or a tensor (R, 3, H, W) in [-1, 1].
    Every reference gets the same noise, so that its features do not depend on its company. Layers are dotted module
    names, by default the paper's five; the pass stops at the last of them. Another timestep, or a text, one for all or
    one a reference, are the paper's ablations (Tables 6 and S3): adapters must have been trained so. ValueError for
    no reference, one without a subject, an unknown layer or a timestep outside the schedule.
    """
    if not isinstance(reference, Tensor):
        images = [reference] if isinstance(reference, Image.Image) else list(reference)
        if not images or not all(isinstance(image, Image.Image) for image in images):
            raise ValueError("a reference is a PIL image or a tensor: open a file by PIL.Image.open; give at least one")
        reference = torch.stack([to_tensor(reference_image(image, size=backbone.image_size)) for image in images])
    if reference.ndim != 4 or reference.shape[1] != 3 or not len(reference):
        raise ValueError(f"reference tensors have the shape (R, 3, H, W), not {tuple(reference.shape)}")
    backbone.require_timestep(timestep)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if len(prompts) not in (1, len(reference)):
        raise ValueError(f"{len(reference)} references need one prompt or as many, not {len(prompts)}")
    latents = backbone.encode_images(reference)
    generator = torch.Generator().manual_seed(int(seed))
    noise = torch.randn(latents.shape[1:], generator=generator).to(latents).expand_as(latents)
    features = reference_features(backbone, latents, noise, layers, backbone.encode_prompts(prompts), timestep)
    settings = {"timestep": timestep, "seed": int(seed), "prompt": prompt, "image_size": reference.shape[-1]}
    return FeatureCache(features, backbone.identity, settings)


def reference_features(
    backbone: "Backbone",
    latents: Tensor,
    noise: Tensor,
    layers: Sequence[str],
    text: Tensor,
    timestep: int = CACHE_TIMESTEP,
) -> dict[str, Tensor]:
    """The layers' inputs for reference latents (R, C, h, w) with a timestep's noise; text is (1 or R, L, D)."""
    timesteps = torch.full((latents.shape[0],), timestep, device=latents.device)
    noisy = backbone.add_noise(latents, noise, timesteps)
    return collect_features(backbone.unet, noisy, timesteps, text.expand(latents.shape[0], -1, -1), layers)


class _AllCollected(Exception):
    """Leaves the U-Net's forward pass once the last layer has been seen."""


@torch.no_grad()
def collect_features(
    unet: UNet, sample: Tensor, timesteps: Tensor, text: Tensor, layers: Sequence[str]
) -> dict[str, Tensor]:
    """The inputs (B, C, H, W) of spatial transformers, before their GroupNorm and `proj_in`, in the order of layers.

    The pass ends with the last of the layers. ValueError if the U-Net is conditioned.
    """
    from dreamcache.conditioning import require_plain

    unet = unwrap(unet)
    require_plain(unet)
    features: dict[str, Tensor] = {}
    layers = layer_names(unet, layers)
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
        known = spatial_transformers(unet)
        raise ValueError(f"the U-Net has no spatial transformer {layer!r}; it has {', '.join(known)}")
    return module


def layer_names(unet: UNet, layers: Sequence[str]) -> tuple[str, ...]:
    """Dotted names of layers where "encoder", "mid" and "decoder" stand for parts of the U-Net (paper Table 5).

    The mid block's transformers are all taken, of the encoder's and the decoder's every second one.
    """
    names: list[str] = []
    for layer in layers:
        if layer in _PARTS:
            part = [name for name in spatial_transformers(unet) if name.startswith(_PARTS[layer])]
            names += part if layer == "mid" else part[1::2]
        else:
            names.append(layer)
    if not names:
        raise ValueError(
            f"no layer of the U-Net goes by {list(layers)}; it has {', '.join(spatial_transformers(unet))}"
        )
    return tuple(names)


def spatial_transformers(unet: UNet) -> dict[str, Any]:
    """The U-Net's spatial transformers by dotted name, from its input to its output within each part."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    return {name: module for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)}


def unwrap(unet: Any) -> UNet:
    """The module behind torch.compile's wrapper."""
    return getattr(unet, "_orig_mod", unet)
