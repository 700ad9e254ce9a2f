"""Parameter counts of the adapters, without weights (paper Table 5): `python -m dreamcache.parameters sd15|sd21`."""

import sys
from collections.abc import Iterable
from typing import Any

import torch

from dreamcache.adapters import AdapterSet
from dreamcache.cache import DEFAULT_LAYERS

# What the two published U-Nets differ in from diffusers' defaults.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
}
ENCODER = tuple(f"down_blocks.{level}.attentions.1" for level in range(3))
MID, DECODER = DEFAULT_LAYERS[:1], DEFAULT_LAYERS[1:]
# Cached layers and the millions of parameters that the paper's Table 5 gives for them.
TABLE_5 = {
    "encoder": (ENCODER, 11),
    "encoder, mid": (ENCODER + MID, 19),
    "mid": (MID, 8),
    "decoder": (DECODER, 17),
    "mid, decoder (default)": (DEFAULT_LAYERS, 25),
    "encoder, mid, decoder": (ENCODER + DEFAULT_LAYERS, 36),
}


def empty_unet(name: str) -> Any:
    """The U-Net of "sd15" or "sd21" at 512 px on the meta device: its shapes without its weights."""
    from diffusers import UNet2DConditionModel

    if name not in UNETS:
        raise ValueError(f"there is no U-Net {name!r} here: say {' or '.join(UNETS)}")
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, **UNETS[name])


def trainable_parameters(unet: Any, layers: Iterable[str] = DEFAULT_LAYERS) -> tuple[int, int]:
    """Parameters of the adapters: all that are trained, and those of the paper's Eq. 3 to 5 alone.

    The equations have no `to_out`, no biases and no norm on the query.
    """
    names = {"to_q.weight", "to_k.weight", "to_v.weight", "proj.weight"}
    adapters = AdapterSet.for_unet(unet, layers)
    counts = [
        (parameter.numel(), name in names)
        for layer in adapters.layers
        for name, parameter in adapters[layer].named_parameters()
    ]
    return sum(count for count, _ in counts), sum(count for count, in_equations in counts if in_equations)


def main(arguments: list[str]) -> int:
    """Print the table for one U-Net; returns the exit code."""
    try:
        (name,) = arguments
        unet = empty_unet(name)
    except ValueError as error:
        print(f"usage: python -m dreamcache.parameters {'|'.join(UNETS)} ({error})", file=sys.stderr)
        return 2
    print(f"Adapters of {name} by cached layers: all trained parameters, Eq. 3 to 5 alone, paper's Table 5")
    for label, (layers, published) in TABLE_5.items():
        trained, in_equations = trainable_parameters(unet, layers)
        print(f"{label:24} {trained:>12,} {in_equations:>12,} {published:>5}M")
    print("The paper mixes the two ways of counting: its 42 MB in fp16 (Table 3) are the equations' 20,992,000.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
