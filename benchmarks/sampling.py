"""What conditioning costs when sampling: `python -m benchmarks.sampling [sd15|miniature|FOLDER]` (Section 3.2)."""

import functools
import statistics
import sys
from typing import Literal

import torch

from benchmarks.backbones import PROMPT, run_benchmark
from benchmarks.ip_adapter import ip_adapter
from benchmarks.timing import Case, median_ratio, megabytes, paired_seconds, peak_memory, print_table
from dreamcache.adapters import AdapterSet
from dreamcache.backbone import Backbone
from dreamcache.cache import DEFAULT_LAYERS, FeatureCache, cache_reference, reference_features
from dreamcache.conditioning import conditioned
from dreamcache.configs import SamplingConfig
from dreamcache.sampling import sample_images, sample_latents


def measure(backbone: Backbone, steps: int, images: int, rounds: int) -> None:
    """Print what conditioning and caching cost on a backbone; on a GPU also memory, torch.compile and LCM."""
    adapters = AdapterSet.for_unet(backbone.unet, backbone_identity=backbone.identity)
    cache = measure_caching(backbone, rounds)
    cases = measure_sampling(backbone, adapters, cache, steps, images, rounds)
    if backbone.device.type == "cuda":
        rows = [[name, megabytes(peak_memory(case, backbone.device))] for name, case in cases.items()]
        print_table("Memory at the peak, above the weights", ["", "peak"], rows)
        measure_lcm(backbone, adapters, cache, rounds)
        measure_compiled(backbone, adapters, cache, steps, images, rounds)


def measure_caching(backbone: Backbone, rounds: int) -> FeatureCache:
    """Time caching a reference against one U-Net pass of one row; returns a cache."""
    device, size = backbone.device, backbone.image_size
    image = torch.rand(1, 3, size, size) * 2 - 1
    latents, null_text = backbone.encode_images(image), backbone.encode_prompts([""])
    timestep = torch.ones(1, dtype=torch.int64, device=device)
    cases: dict[str, Case] = {
        "one U-Net pass": torch.no_grad()(lambda: backbone.unet(latents, timestep, null_text)),
        "caching, the U-Net's part": lambda: reference_features(backbone, latents, latents, DEFAULT_LAYERS, null_text),
        "caching with VAE and text encoder": lambda: cache_reference(backbone, image),
    }
    seconds = paired_seconds(cases, rounds, device)
    rows = [
        [name, f"{statistics.median(took):.4f} s", f"{median_ratio(seconds, name, 'one U-Net pass'):.3f}"]
        for name, took in seconds.items()
    ]
    print_table(f"Caching one reference (medians of {rounds} rounds)", ["", "time", "ratio"], rows)
    print("The mark: the U-Net's part takes at most 1.0 of a pass.")
    return cache_reference(backbone, image)


def measure_sampling(
    backbone: Backbone, adapters: AdapterSet, cache: FeatureCache, steps: int, images: int, rounds: int
) -> dict[str, Case]:
    """Time conditioned against plain sampling at the same number of guidance branches; returns both's cases."""
    cases = {
        f"{guidance}, {kind}": sampling_case(backbone, adapters, cache, guidance, strength, steps, images)
        for guidance in ("joint", "combined")
        for kind, strength in (("plain", 0.0), ("conditioned", 1.0))
    }
    # IP-Adapter's guidance has two branches, as the joint one.
    cases["joint, IP-Adapter"] = cases["joint, plain"]

    @torch.no_grad()
    def enter() -> None:
        with conditioned(backbone.unet, adapters, cache):
            pass

    around = {"joint, IP-Adapter": ip_adapter(backbone.unet)}
    seconds = paired_seconds({**cases, "entering": enter}, rounds, backbone.device, around)
    rows = []
    for name in sorted(cases, reverse=True):
        plain = f"{name.partition(',')[0]}, plain"
        added = statistics.median(a - b for a, b in zip(seconds[name], seconds[plain], strict=True))
        total = f"{statistics.median(seconds[name]):.3f} s"
        rows.append([name, total, f"{median_ratio(seconds, name, plain):.3f}", f"{added / steps * 1000:.1f} ms"])
    title = f"Sampling {images} image(s), {steps} step(s), without decoding (medians of {rounds} rounds)"
    print_table(title, ["guidance", "time", "ratio to plain", "added a step"], rows)
    print("joint: 2 branches, combined: 3; plain: the same branches at strength 0. The reference is cached before.")
    print("The mark: conditioned takes at most 1.05 of plain on SD 1.5 at 512 px, 1.10 on the miniature.")
    once = statistics.median(seconds["entering"])
    print(f"Conditioned includes {once * 1000:.1f} ms once a batch, however many steps: keys, values, folded weights.")
    return {name: case for name, case in cases.items() if name not in around}


def sampling_case(
    backbone: Backbone, adapters: AdapterSet, cache: FeatureCache, guidance: Literal["joint", "combined"],
    strength: float, steps: int, images: int,
) -> Case:  # fmt: skip
    """Sampling latents with one way of guidance; strength 0 is the plain U-Net with as many branches."""
    config = SamplingConfig(guidance=guidance, steps=steps)
    seeds, strengths = range(images), [strength] * images
    return functools.partial(
        sample_latents, backbone, adapters, cache, [PROMPT] * images, config, seeds=seeds, strengths=strengths
    )


def measure_lcm(backbone: Backbone, adapters: AdapterSet, cache: FeatureCache, rounds: int) -> None:
    """Time one image of 4 steps of the LCM scheduler, decoding included."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler.from_config(backbone.scheduler.config)
    config = SamplingConfig(guidance="joint", steps=4)
    cases: dict[str, Case] = {
        name: functools.partial(
            sample_images, backbone, adapters, cache, [PROMPT], config, strength=strength, scheduler=scheduler
        )
        for name, strength in (("plain", 0.0), ("conditioned", 1.0))
    }
    seconds = paired_seconds(cases, rounds, backbone.device)
    rows = [
        [name, f"{statistics.median(took):.4f} s", f"{median_ratio(seconds, name, 'plain'):.3f}"]
        for name, took in seconds.items()
    ]
    print_table("One image in 4 LCM steps, joint guidance, with decoding", ["", "time", "ratio to plain"], rows)


def measure_compiled(
    backbone: Backbone, adapters: AdapterSet, cache: FeatureCache, steps: int, images: int, rounds: int
) -> None:
    """Time sampling with the U-Net compiled, which it stays; what torch.compile itself takes is not counted."""
    backbone.unet.compile()
    cases = {
        name: sampling_case(backbone, adapters, cache, "combined", strength, steps, images)
        for name, strength in (("plain", 0.0), ("conditioned", 1.0))
    }
    seconds = paired_seconds(cases, rounds, backbone.device)
    rows = [
        [name, f"{images / statistics.median(took):.3f}", f"{median_ratio(seconds, name, 'plain'):.3f}"]
        for name, took in seconds.items()
    ]
    title = f"With torch.compile: combined guidance, {steps} steps, without decoding"
    print_table(title, ["", "images/s", "time to plain"], rows)


main = functools.partial(
    run_benchmark, measure, {"steps": 2, "images": 1, "rounds": 3}, {"steps": 50, "images": 4, "rounds": 5}
)


if __name__ == "__main__":
    sys.exit(main())
