"""The backbones that speed is measured on, and the arguments that every benchmark takes."""

import argparse
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import miniature
from dreamcache.backbone import Backbone, load_backbone
from dreamcache.parameters import UNETS

PROMPT = "a red teapot on a beach"


def benchmark_backbone(name: str, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The backbone of a benchmark: "sd15" (random weights), "miniature", or a folder in diffusers' layout.

    FileNotFoundError or ValueError if there is no such backbone.
    """
    if name == "sd15":
        return random_sd15(device, dtype)
    folder = Path(miniature.__file__).parent / "checkpoints" / "stable-diffusion" if name == "miniature" else Path(name)
    return load_backbone(folder, device, dtype)


def random_sd15(device: torch.device, dtype: torch.dtype) -> Backbone:
    """Stable Diffusion 1.5's architecture with random weights: what it costs does not depend on their values."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    # A tokenizer without merges reads letter by letter; texts are padded to 77 tokens all the same.
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-'"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: n for n, t in enumerate(tokens)}, merges=[], model_max_length=77)
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, **UNETS["sd15"])
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        )  # fmt: skip
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12, max_position_embeddings=77,
            )
        )  # fmt: skip
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    for module in (vae, text_encoder, unet):
        module.to(device=device, dtype=dtype)
    backbone = Backbone(vae, text_encoder, tokenizer, unet, scheduler, Path("sd15"), "sd15 with random weights")
    # There are no files whose digest it could be.
    backbone.identity = "sd15 with random weights, seed 0"
    return backbone


def run_benchmark(
    measure: Callable[..., None],
    numbers: Mapping[str, int],
    on_gpu: Mapping[str, int],
    arguments: list[str] | None = None,
) -> int:
    """Parse `[BACKBONE] [--device D] [--dtype T]` and the named numbers, measure, and return the exit code.

    `measure`, whose docstring's first paragraph is the help, gets the backbone and the numbers by name; their values
    are defaults, of which `on_gpu` has those that differ on a GPU. What is wrong with the arguments, by default the
    program's, is one line on stderr.
    """
    parser = argparse.ArgumentParser(description=inspect.cleandoc(measure.__doc__ or "").partition("\n\n")[0])
    parser.add_argument("backbone", nargs="?", default="sd15", help="sd15 (random weights), miniature, or a folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="float32 on a CPU, else bfloat16")
    for name, default in numbers.items():
        more = f", {on_gpu[name]} on a GPU" if name in on_gpu else ""
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default: {default}{more}")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        device = torch.device(given.pop("device"))
    except RuntimeError:
        parser.error("no such device: give cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here that torch can use: give --device cpu")
    dtype = getattr(torch, given.pop("dtype") or ("float32" if device.type == "cpu" else "bfloat16"))
    name = given.pop("backbone")
    defaults = {**numbers, **on_gpu} if device.type == "cuda" else numbers
    given = {key: defaults[key] if value is None else value for key, value in given.items()}
    try:
        backbone = benchmark_backbone(name, device, dtype)
        print(f"{backbone.location}, {backbone.image_size} px, {str(dtype).removeprefix('torch.')}, {_machine(device)}")
        measure(backbone, **given)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    except torch.OutOfMemoryError:
        parser.exit(1, f"{parser.prog}: {device} has not enough memory for this: lower the numbers given\n")
    return 0


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores, torch {torch.__version__}"
