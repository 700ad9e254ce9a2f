"""Parameter counts of the adapters, without weights (Tables 4, 5, S2): `python -m dreamcache.parameters sd15|sd21`."""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from dreamcache.ablations import TABLES
from dreamcache.adapters import AdapterSet
from dreamcache.cache import spatial_transformers

# What the two published U-Nets differ in from diffusers' defaults.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
}
DEFAULT_PARTS = ("mid", "decoder")


def empty_unet(name: str) -> Any:
    """The U-Net of "sd15" or "sd21" at 512 px on the meta device: its shapes without its weights."""
    from diffusers import UNet2DConditionModel

    if name not in UNETS:
        raise ValueError(f"there is no U-Net {name!r} here: say {' or '.join(UNETS)}")
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, **UNETS[name])


def trainable_parameters(unet: Any, layers: Sequence[str] = DEFAULT_PARTS, **ablation: Any) -> tuple[int, int]:
    """Parameters of the adapters: all that are trained, and the matrices of the paper's Eq. 3 to 5 alone.

    The equations have no `to_out`, no biases and no norm on the query. `layers` and `ablation` are `for_unet`'s.
    """
    with unet.device:
        adapters = AdapterSet.for_unet(unet, layers, **ablation)
    counts = [
        (parameter.numel(), parameter.ndim == 2 and not name.startswith("to_out"))
        for layer in adapters.layers
        for name, parameter in adapters[layer].named_parameters()
    ]
    return sum(count for count, _ in counts), sum(count for count, in_equations in counts if in_equations)


def text_keys_and_values(unet: Any) -> int:
    """Parameters of keys and values as wide as the text at every text attention, as IP-Adapter has them."""
    attentions = [module.transformer_blocks[0].attn2 for module in spatial_transformers(unet).values()]
    return sum(attention.to_k.weight.numel() + attention.to_v.weight.numel() for attention in attentions)


def main(arguments: list[str]) -> int:
    """Print the tables for one U-Net; returns the exit code."""
    try:
        (name,) = arguments
        unet = empty_unet(name)
    except ValueError as error:
        print(f"usage: python -m dreamcache.parameters {'|'.join(UNETS)} ({error})", file=sys.stderr)
        return 2
    print(f"Adapters of {name}: all trained parameters, the matrices of Eq. 3 to 5 alone, the paper's figure")
    for table in (TABLES[kind] for kind in ("integration", "layers", "resolutions")):
        print(table.title)
        for line in table.lines:
            trained, in_equations = trainable_parameters(unet, **line.adapters)
            figure = "-" if line.millions is None else f"{line.millions}M"
            print(f"  {line.label:26} {trained:>12,} {in_equations:>12,} {figure:>6}")
    print("The paper mixes the two ways of counting: its 42 MB in fp16 (Table 3) are the equations' 20,992,000.")
    print(
        "Its textual sum looks like IP-Adapter's own keys and values, from the text's width at every text attention: "
        f"{text_keys_and_values(unet):,} on this U-Net."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
