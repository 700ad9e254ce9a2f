"""Training a LoRA on the backbone, to measure beside training the adapters."""

import copy
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamcache.backbone import Backbone
from dreamcache.cache import UNet

# What diffusers' LoRA training script for Stable Diffusion trains by default.
RANK, TARGETS = 4, ("to_q", "to_k", "to_v", "to_out.0")


def lora_loss(backbone: Backbone) -> tuple[Callable[[dict[str, Any]], Tensor], list[nn.Parameter], str]:
    """The loss of a LoRA of rank 4 on a copy of the U-Net's attention, its float32 weights, and what made it.

    diffusers' own where peft is installed, on which it depends; otherwise the same arithmetic in hooks.
    """
    unet = copy.deepcopy(backbone.unet)
    if importlib.util.find_spec("peft") is not None:
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
        cast_training_params(unet, torch.float32)
        parameters, made_by = [p for p in unet.parameters() if p.requires_grad], "diffusers with peft"
    else:
        parameters, made_by = _add_lora(unet), "our own, since peft, which diffusers' needs, is not installed"

    def loss(batch: dict[str, Any]) -> Tensor:
        latents, text = batch["latents"].to(backbone.device), batch["text"].to(backbone.device)
        timesteps, noise = batch["timestep"].to(backbone.device), batch["noise"].to(backbone.device)
        noisy = backbone.add_noise(latents, noise, timesteps)
        mixed = backbone.dtype != torch.float32
        with torch.autocast(backbone.device.type, backbone.dtype) if mixed else nullcontext():
            prediction = unet(noisy, timesteps, text).sample
        return F.mse_loss(prediction.float(), backbone.training_target(latents, noise, timesteps))

    return loss, parameters, made_by


def _add_lora(unet: UNet) -> list[nn.Parameter]:
    parameters: list[nn.Parameter] = []
    for name, linear in unet.named_modules():
        if not name.endswith(TARGETS):
            continue
        down = nn.Parameter(torch.randn(RANK, linear.in_features, device=unet.device) / RANK)
        up = nn.Parameter(torch.zeros(linear.out_features, RANK, device=unet.device))

        def add(module: nn.Module, args: Any, output: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
            return output + F.linear(F.linear(args[0], down.to(output.dtype)), up.to(output.dtype))

        linear.register_forward_hook(add)
        parameters += [down, up]
    return parameters
