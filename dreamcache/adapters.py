"""The conditioning adapters: the trainable weights of the method (paper Section 3.2)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamcache.cache import DEFAULT_LAYERS, UNet, find_layer, unwrap
from dreamcache.checkpoints import written_at_once

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone


@dataclass(frozen=True)
class LayerShape:
    """The sizes that one layer's adapter takes over from the U-Net: width d, the cached tensor's channels, heads."""

    width: int
    context_width: int
    heads: int


class ConditioningAdapter(nn.Module):
    """One layer's trainable weights: attention to the cache and the projection back to the width (Eq. 3 to 5).

    At the start the projection is [I | 0] with zero bias, so the layer is exactly the backbone's own, while the
    attention's weights are random, so that each of them has a gradient once the projection has moved.
    """

    def __init__(self, shape: LayerShape, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width, context = shape.width, shape.context_width
        self.shape = shape
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.proj = nn.Linear(2 * width, width)
        with torch.no_grad():
            for linear in (self.to_q, self.to_k, self.to_v, self.to_out):
                bound = linear.in_features**-0.5
                linear.weight.uniform_(-bound, bound, generator=generator)
            self.to_out.bias.uniform_(-(width**-0.5), width**-0.5, generator=generator)
            self.proj.weight.zero_()
            self.proj.weight[:, :width].fill_diagonal_(1.0)
            self.proj.bias.zero_()


class AdapterSet(nn.Module):
    """The adapters of all conditioned layers, in float32, and the backbone that they belong to.

    `backbone_identity` is the digest of the backbone's weights, or None where it is not known.
    """

    def __init__(self, shapes: Mapping[str, LayerShape], backbone_identity: str | None = None, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.backbone_identity = backbone_identity
        # nn.ModuleDict takes no dots in its keys.
        self._adapters = nn.ModuleDict(
            {layer.replace(".", "/"): ConditioningAdapter(shape, generator) for layer, shape in shapes.items()}
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The conditioned layers' dotted module names."""
        return tuple(key.replace("/", ".") for key in self._adapters)

    def __getitem__(self, layer: str) -> ConditioningAdapter:
        adapter = self._adapters[layer.replace(".", "/")]
        assert isinstance(adapter, ConditioningAdapter)
        return adapter

    @classmethod
    def for_unet(
        cls,
        unet: UNet,
        layers: Iterable[str] = DEFAULT_LAYERS,
        backbone_identity: str | None = None,
        seed: int = 0,
    ) -> "AdapterSet":
        """Fresh adapters for a U-Net: they change nothing until trained (25,207,040 parameters on SD 1.5 and 2.1).

        ValueError if a layer is no spatial transformer of the U-Net. The adapters lie on the U-Net's device.
        """
        unet = unwrap(unet)
        shapes = {layer: layer_shape(unet, layer) for layer in layers}
        return cls(shapes, backbone_identity, seed).to(unet.device)

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: "Backbone | None" = None) -> "AdapterSet":
        """Adapters from a folder that `save_pretrained` wrote, on the backbone's device if one is given.

        FileNotFoundError without such a folder; ValueError for files that are damaged or for another backbone.
        """
        folder = Path(folder)
        for name in ("config.json", "adapters.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no adapters in {folder}: {name} is missing")
        try:
            config = json.loads((folder / "config.json").read_text())
            shapes = {layer: LayerShape(**shape) for layer, shape in config["layers"].items()}
            adapters = cls(shapes, config["backbone_identity"])
            adapters.load_tensors(load_file(folder / "adapters.safetensors"), str(folder))
        except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"the adapters in {folder} cannot be read ({error}): train them again") from error
        if backbone is not None:
            adapters.check_backbone(backbone)
            adapters = adapters.to(backbone.device)
        return adapters

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `adapters.safetensors` and `config.json` into a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with written_at_once(folder / "adapters.safetensors") as temporary:
            save_file(self.tensors(), temporary)
        config = {
            "backbone_identity": self.backbone_identity,
            "layers": {layer: vars(self[layer].shape) for layer in self.layers},
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
        }
        with written_at_once(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")

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


def layer_shape(unet: UNet, layer: str) -> LayerShape:
    """A layer's sizes, read off its modules; ValueError if adapters cannot condition it."""
    transformer = find_layer(unet, layer)
    blocks = transformer.transformer_blocks
    if len(blocks) != 1:
        raise ValueError(f"{layer} has {len(blocks)} transformer blocks; adapters condition layers with one")
    block = blocks[0]
    if not isinstance(block.norm1, nn.LayerNorm) or block.pos_embed is not None or block.only_cross_attention:
        raise ValueError(f"{layer} is no spatial transformer with plain self-attention as in Stable Diffusion 1 and 2")
    return LayerShape(block.attn1.to_q.in_features, transformer.norm.num_channels, block.attn1.heads)
