"""The authors' released adapters: a `cross_attention-STEP.pt` in the naming of the original Stable Diffusion code."""

import re
from pathlib import Path

import torch
from torch import Tensor

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import Backbone
from dreamcache.cache import DEFAULT_LAYERS, UNet

_NAMES = {
    "attn_mem.to_q.weight": "to_q.weight",
    "attn_mem.to_k.weight": "to_k.weight",
    "attn_mem.to_v.weight": "to_v.weight",
    "attn_mem.to_out.0.weight": "to_out.weight",
    "attn_mem.to_out.0.bias": "to_out.bias",
    "linear_cat.weight": "proj.weight",
    "linear_cat.bias": "proj.bias",
    "norm2_mem.weight": "norm.weight",
    "norm2_mem.bias": "norm.bias",
}
_KEY = re.compile(r"diffusion_model\.(middle_block|output_blocks\.(\d+))\.1\.transformer_blocks\.0\.(.+)")


def read_released(file: str | Path, unet: UNet | Backbone) -> AdapterSet:
    """Adapters from the authors' checkpoint for SD 1.5 or SD 2.1 base, given the backbone or its U-Net.

    FileNotFoundError without the file; ValueError if it is no such checkpoint, does not fit the U-Net, or the backbone
    predicts v: the released adapters were trained with noise prediction at 512 px.
    """
    identity = None
    if isinstance(unet, Backbone):
        identity = unet.identity
        if unet.prediction_type != "epsilon":
            raise ValueError("the released adapters belong to noise prediction: use SD 1.5 or the 512 px SD 2.1 base")
        unet = unet.unet
    # A bare U-Net does not say what it predicts; of SD 2.1 the 768 px model (96 latent pixels) predicts v.
    if unet.config.sample_size == 96:
        raise ValueError("this is the 768 px U-Net, which predicts v: use SD 1.5 or the 512 px SD 2.1 base")
    if not Path(file).is_file():
        raise FileNotFoundError(f"no released adapters at {file}")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch.load raises whatever comes up
        raise ValueError(f"{file} is no file of tensors ({type(error).__name__}): it is not loaded") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{file} is no flat dict of tensors, as the authors' cross_attention-STEP.pt is")
    blocks_per_level = unet.config.layers_per_block + 1
    tensors = {}
    for key, tensor in loaded.items():
        match = _KEY.fullmatch(key)
        if match is None or match[3] not in _NAMES:
            raise ValueError(f"{file} holds {key!r}, which is no released adapter's weight")
        layer = "mid_block.attentions.0"
        if match[2] is not None:
            level, position = divmod(int(match[2]), blocks_per_level)
            layer = f"up_blocks.{level}.attentions.{position}"
        tensors[f"{layer}.{_NAMES[match[3]]}"] = tensor.float()
    adapters = AdapterSet.for_unet(unet, DEFAULT_LAYERS, identity)
    adapters.load_tensors(tensors, str(file))
    return adapters
