"""The speed of training: `python -m benchmarks.training [sd15|miniature|FOLDER]` (paper Section 3.3).

Compared with the same loop in float32 whose passes stop nowhere early, and with training a LoRA on the same backbone.
"""

import copy
import functools
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.backbones import PROMPT, run_benchmark
from benchmarks.lora import lora_loss
from benchmarks.timing import Case, matrix_peak, median_ratio, megabytes, paired_seconds, peak_memory, print_table
from dreamcache.adapters import AdapterSet
from dreamcache.backbone import Backbone
from dreamcache.cache import CACHE_TIMESTEP, FeatureCache
from dreamcache.conditioning import conditioned
from dreamcache.configs import TrainingConfig
from dreamcache.objective import training_loss
from dreamcache.training_data import TrainingData, collate, store_latents
from shards.triplets import Triplet, TripletShards, write_triplets

STORED, ONLINE = "targets and references stored", "references augmented online"
BASELINE, LORA = "float32, no early stops, stored", "LoRA of rank 4, targets stored"

Batch = dict[str, Any]
Loss = Callable[[Batch], Tensor]


def measure(backbone: Backbone, batch_size: int, rounds: int, workers: int, triplets: int) -> None:
    """Print samples a second, memory and the share of the device's peak of every loop; `rounds` steps each.

    All loops read the same `triplets` drawn triplets, which are encoded before anything is timed.
    """
    null_text = backbone.encode_prompts([""])
    adapters = {name: AdapterSet.for_unet(backbone.unet) for name in (STORED, ONLINE, BASELINE)}
    in_float32 = copy.copy(backbone)
    if backbone.dtype != torch.float32:
        in_float32.unet = copy.deepcopy(backbone.unet).float()
    of_lora, lora_parameters, made_by = lora_loss(backbone)
    losses: dict[str, Loss] = {
        STORED: lambda batch: training_loss(backbone, adapters[STORED], batch, null_text),
        ONLINE: lambda batch: training_loss(backbone, adapters[ONLINE], batch, null_text),
        BASELINE: lambda batch: loss_without_early_stops(in_float32, adapters[BASELINE], batch, null_text.float()),
        LORA: of_lora,
    }
    with tempfile.TemporaryDirectory() as folder:
        batches = {
            name: training_batches(
                backbone,
                drawn_shard(Path(folder), backbone.image_size, triplets),
                name != ONLINE,
                batch_size,
                workers,
            )
            for name in losses
        }
        flops = {name: flops_of(loss, first_row(next(batches[name]))) for name, loss in losses.items()}
        steps: dict[str, Case] = {
            name: optimizer_step(
                loss, lora_parameters if name == LORA else list(adapters[name].parameters()), batches[name]
            )
            for name, loss in losses.items()
        }
        seconds = paired_seconds(steps, rounds, backbone.device)
        memory = {name: peak_memory(step, backbone.device) for name, step in steps.items()}
        read = {name: reading_speed(batches[name], batch_size, workers) for name in losses}
    peaks = {dtype: matrix_peak(backbone.device, dtype) for dtype in {backbone.dtype, torch.float32}}
    rows = []
    for name, took in seconds.items():
        speed = batch_size / statistics.median(took)
        share = speed * flops[name] / peaks[torch.float32 if name == BASELINE else backbone.dtype]
        ratio = f"{median_ratio(seconds, name, STORED):.2f}"
        cells = [f"{speed:.3g}", ratio, f"{flops[name] / 1e12:.3g}", f"{share:.0%}", megabytes(memory[name])]
        rows.append([name, *cells, f"{read[name]:.3g}"])
    columns = ["", "samples/s", "time", "TFLOP a sample", "share of peak", "memory above weights", "read/s"]
    print_table(f"Training, {batch_size} a step (medians of {rounds} steps)", columns, rows)
    measured = ", ".join(f"{peak / 1e12:.3g} in {str(dtype).removeprefix('torch.')}" for dtype, peak in peaks.items())
    print(f"Peak: a large matrix product's TFLOP/s here, {measured}. LoRA: {made_by}.")
    print("read/s: samples that its data alone gives, nothing fetched ahead; no loop stays faster than that.")
    if backbone.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        print("Convolutions in float32 run in TF32, as PyTorch has it: their share of float32's peak may pass 100%.")


def loss_without_early_stops(backbone: Backbone, adapters: AdapterSet, batch: Batch, null_text: Tensor) -> Tensor:
    """The training's loss as a loop without our early stops has it.

    The cache pass runs through the whole U-Net, and gradients flow back to the noisy latents, so that the activations
    of the whole U-Net are kept.
    """
    device, unet = backbone.device, backbone.unet
    latents, references, text = (batch[name].to(device).float() for name in ("latents", "reference_latents", "text"))
    text = torch.where(batch["drop_caption"].to(device)[:, None, None], null_text, text)
    noise, timesteps = batch["noise"].to(device), batch["timestep"].to(device)
    features: dict[str, Tensor] = {}

    def collect(layer: str, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        features[layer] = args[0]

    hooks = [
        unet.get_submodule(layer).register_forward_pre_hook(functools.partial(collect, layer))
        for layer in adapters.layers
    ]
    with torch.no_grad():
        at = torch.full_like(timesteps, CACHE_TIMESTEP)
        noisy_references = backbone.add_noise(references, batch["reference_noise"].to(device), at)
        unet(noisy_references, at, null_text.expand(len(references), -1, -1))
    for hook in hooks:
        hook.remove()
    noisy = backbone.add_noise(latents, noise, timesteps).requires_grad_()
    with conditioned(unet, adapters, FeatureCache(features)):
        prediction = unet(noisy, timesteps, text).sample
    return (prediction - backbone.training_target(latents, noise, timesteps)).square().mean()


def optimizer_step(loss: Loss, parameters: list[torch.nn.Parameter], batches: Iterator[Batch]) -> Case:
    """One step of training as a case to be timed, the wait for its batch included."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step() -> None:
        loss(next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def reading_speed(batches: Iterator[Batch], batch_size: int, workers: int) -> float:
    """Samples a second of the data alone, which workers prepare while others' steps run and so no step's time shows."""
    for _ in range(2 * workers):  # what a DataLoader has fetched ahead
        next(batches)
    count = max(2, 2 * workers)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.perf_counter() - started)


def flops_of(loss: Loss, batch: Batch) -> int:
    """The FLOP of a batch's loss and gradients, counted at matrix products and convolutions."""
    # Attention as plain products, since the counter does not know the fused kernels of every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(batch).backward()
    return counter.get_total_flops()


def first_row(batch: Batch) -> Batch:
    """The first row of a batch as a batch: attention by plain products needs much memory for more."""
    return {name: values[:1] for name, values in batch.items()}


def training_batches(
    backbone: Backbone, shard: Path, stored_references: bool, batch_size: int, workers: int
) -> Iterator[Batch]:
    """An endless sequence of batches read from a shard, as training reads them."""
    shards = TripletShards([shard])
    config = TrainingConfig(
        batch_size=batch_size, held_out=0.0, caption_dropout=0.0, reference_variants=2 if stored_references else 0
    )
    stored = store_latents(backbone, shards, config)
    rows: Iterable[int] = itertools.count()
    return iter(DataLoader(
        TrainingData(shards, config, backbone, stored), batch_size=batch_size, sampler=rows, num_workers=workers,
        collate_fn=collate, pin_memory=backbone.device.type == "cuda",
    ))  # fmt: skip


@functools.cache
def drawn_shard(folder: Path, size: int, count: int) -> Path:
    """A shard of so many triplets with images of `size` pixels, drawn at the first call for its folder."""
    triplets = []
    for number in range(count):
        generator = np.random.default_rng(number)
        # Smooth grounds, which as JPEGs weigh about what photographs do.
        ground = Image.fromarray(generator.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        image, mask = ground.resize((size, size), Image.Resampling.BICUBIC), Image.new("L", (size, size))
        box = (size // 4, size // 4, 3 * size // 4, 3 * size // 4)
        ImageDraw.Draw(image).ellipse(box, fill="red")
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        jpg, png = io.BytesIO(), io.BytesIO()
        image.save(jpg, "JPEG", quality=92)
        mask.save(png, "PNG")
        key = f"{number:05d}"
        triplets.append(Triplet(key, jpg.getvalue(), png.getvalue(), {"key": key, "caption": PROMPT}))
    return write_triplets(folder, 0, triplets, "drawn for the benchmark")


main = functools.partial(
    run_benchmark,
    measure,
    {"batch_size": 1, "rounds": 3, "workers": 0, "triplets": 4},
    {"batch_size": 8, "rounds": 20, "workers": 8, "triplets": 32},
)


if __name__ == "__main__":
    sys.exit(main())
