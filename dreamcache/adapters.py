"""The conditioning adapters: the trainable weights of the method (paper Section 3.2)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dreamcache.cache import DEFAULT_LAYERS, UNet, find_layer, layer_names, unwrap
from dreamcache.configs import AdapterConfig
from dreamcache.integrations import INTEGRATIONS, ConditioningAdapter, LayerShape
from shards.files import replace_file
from shards.hub import hub_folder, is_hub_name

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone


class AdapterSet(nn.Module):
    """The adapters of all conditioned layers, in float32, and the backbone that they belong to.

    `backbone_identity` is the digest of the backbone's weights, or None where it is not known. `config.layers` are the
    layers of `shapes`, whatever was given.
    """

    def __init__(
        self,
        shapes: Mapping[str, LayerShape],
        backbone_identity: str | None = None,
        seed: int = 0,
        config: AdapterConfig = AdapterConfig(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.backbone_identity = backbone_identity
        self.config = config.model_copy(update={"layers": tuple(shapes)})
        adapter = INTEGRATIONS[config.integration]
        # nn.ModuleDict takes no dots in its keys.
        self._adapters = nn.ModuleDict(
            {layer.replace(".", "/"): adapter(shape, generator) for layer, shape in shapes.items()}
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The conditioned layers' dotted module names."""
        return tuple(key.replace("/", ".") for key in self._adapters)

    @property
    def cached_layers(self) -> tuple[str, ...]:
        """The layers that a feature cache for these adapters must hold."""
        return tuple(dict.fromkeys(cached_layer(self.config, layer) for layer in self.layers))

    def cache_settings(self, subjects: str | Sequence[str] = "") -> dict[str, Any]:
        """What `cache_reference` is to be told for these adapters; `subjects` is the references' noun, or one each.

        ValueError where the adapters read the noun with the features and there is none.
        """
        nouns = [subjects] if isinstance(subjects, str) else subjects
        if "{subject}" in self.config.cache_prompt and not all(nouns):
            raise ValueError("these adapters read the subject's noun with its features: give it (subject, --noun)")
        prompts = [self.config.cache_prompt.replace("{subject}", noun) for noun in nouns]
        prompt = prompts[0] if isinstance(subjects, str) else prompts
        return {"layers": self.cached_layers, "prompt": prompt, "timestep": self.config.cache_timestep}

    def __getitem__(self, layer: str) -> ConditioningAdapter:
        adapter = self._adapters[layer.replace(".", "/")]
        assert isinstance(adapter, ConditioningAdapter)
        return adapter

    @classmethod
    def for_unet(
        cls,
        unet: UNet,
        layers: Sequence[str] = DEFAULT_LAYERS,
        backbone_identity: str | None = None,
        seed: int = 0,
        **ablation: Any,
    ) -> "AdapterSet":
        """Fresh adapters for a U-Net: they change nothing until trained (25,207,040 parameters on SD 1.5 and 2.1).

        `layers` are dotted names or parts, as `layer_names` reads them; `ablation` takes the other fields of
        AdapterConfig. ValueError if a layer is no spatial transformer of the U-Net. The adapters lie on its device.
        """
        unet = unwrap(unet)
        config = AdapterConfig(layers=layer_names(unet, layers), **ablation)
        shapes = {layer: layer_shape(unet, layer, cached_layer(config, layer)) for layer in config.layers}
        return cls(shapes, backbone_identity, seed, config).to(unet.device)

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: "Backbone | None" = None) -> "AdapterSet":
        """Adapters that `save_pretrained` wrote, local or on the Hub, on the backbone's device if one is given.

        FileNotFoundError without such a folder; ValueError for files that are damaged or for another backbone.
        """
        folder = adapters_folder(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            shapes = {layer: LayerShape(**shape) for layer, shape in config["layers"].items()}
            # What a file does not say is the paper's.
            known = AdapterConfig.model_fields.keys() & config.keys() - {"layers"}
            ablation = AdapterConfig(**{name: config[name] for name in known})
            adapters = cls(shapes, config["backbone_identity"], config=ablation)
            adapters.load_tensors(load_file(folder / "adapters.safetensors"), str(folder))
        except (
            json.JSONDecodeError, UnicodeDecodeError, ValidationError, KeyError, TypeError, AttributeError,
            SafetensorError,
        ) as error:  # fmt: skip
            reason = " ".join(str(error).split())
            raise ValueError(f"the adapters in {folder} cannot be read ({reason}): train them again") from error
        if backbone is not None:
            adapters.check_backbone(backbone)
            adapters = adapters.to(backbone.device)
        return adapters

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `adapters.safetensors` and `config.json` into a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "adapters.safetensors", save(self.tensors()))
        config = {
            "backbone_identity": self.backbone_identity,
            **self.config.model_dump(),
            "layers": {layer: vars(self[layer].shape) for layer in self.layers},
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
        }
        replace_file(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")

    @classmethod
    def from_released(cls, file: str | Path, unet: "UNet | Backbone") -> "AdapterSet":
        """Adapters from the authors' `cross_attention-STEP.pt` (see `released.read_released`)."""
        from dreamcache.released import read_released

        return read_released(file, unet)

    def tensors(self) -> dict[str, Tensor]:
        """All weights on the CPU under `LAYER.NAME`, such as `mid_block.attentions.0.to_q.weight`."""
        return {
            f"{layer}.{name}": tensor.detach().cpu().contiguous()
            for layer in self.layers
            for name, tensor in self[layer].state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take over weights named as `tensors()` names them; ValueError names missing, extra or misshapen ones."""
        own = self.tensors()
        problems = [f"{name} is missing" for name in own if name not in tensors]
        problems += [f"{name} is not known" for name in tensors if name not in own]
        problems += [
            f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(f"{source} does not hold these adapters: {'; '.join(problems[:3])}{more}")
        for layer in self.layers:
            weights = {name: tensors[f"{layer}.{name}"] for name in self[layer].state_dict()}
            self[layer].load_state_dict(weights)

    def check_backbone(self, backbone: "Backbone") -> None:
        """ValueError if these adapters were made for another backbone."""
        if self.backbone_identity is not None and self.backbone_identity != backbone.identity:
            raise ValueError(
                f"these adapters belong to the backbone {self.backbone_identity[:12]}, but {backbone.location} is "
                f"{backbone.identity[:12]}: load the backbone that they were trained on"
            )


def adapters_folder(location: str | Path) -> Path:
    """The local folder of adapters, given that or their name on the Hub; FileNotFoundError if there are none."""
    folder = Path(location).expanduser()
    if not folder.exists() and is_hub_name(str(location)):
        folder = hub_folder(str(location), ("*.json", "adapters.safetensors"))
    for name in ("config.json", "adapters.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no adapters in {location}: {name} is missing")
    return folder


def cached_layer(config: AdapterConfig, layer: str) -> str:
    """The layer whose cached features a conditioned layer reads: itself, or for one resolution the mid block's."""
    return DEFAULT_LAYERS[0] if config.single_resolution else layer


def layer_shape(unet: UNet, layer: str, cached: str) -> LayerShape:
    """A layer's sizes when it reads a cached one, off their modules; ValueError if adapters cannot condition it."""
    transformer = find_layer(unet, layer)
    blocks = transformer.transformer_blocks
    if len(blocks) != 1:
        raise ValueError(f"{layer} has {len(blocks)} transformer blocks; adapters condition layers with one")
    block = blocks[0]
    if not isinstance(block.norm1, nn.LayerNorm) or block.pos_embed is not None or block.only_cross_attention:
        raise ValueError(f"{layer} is no spatial transformer with plain self-attention as in Stable Diffusion 1 and 2")
    return LayerShape(block.attn1.to_q.in_features, find_layer(unet, cached).norm.num_channels, block.attn1.heads)
