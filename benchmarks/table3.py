"""The paper's Table 3 for us: `python -m benchmarks.table3 [sd15|miniature|FOLDER] [--steps N]`."""

import functools
import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.backbones import PROMPT, run_benchmark
from benchmarks.timing import paired_seconds, print_table
from dreamcache.adapters import AdapterSet
from dreamcache.backbone import Backbone
from dreamcache.cache import cache_reference
from dreamcache.configs import SamplingConfig
from dreamcache.parameters import trainable_parameters
from dreamcache.sampling import sample_images

PAPER_STEPS = 100


def measure(backbone: Backbone, steps: int, rounds: int) -> None:
    """Print seconds to cache, seconds for 100 steps of one image, decoding included, and the size of the adapters.

    ValueError for fewer than 2 or more than 100 steps.
    """
    if not 2 <= steps <= PAPER_STEPS:
        raise ValueError(f"--steps must be 2 to {PAPER_STEPS}, not {steps}")
    adapters = AdapterSet.for_unet(backbone.unet, backbone_identity=backbone.identity)
    image = torch.rand(1, 3, backbone.image_size, backbone.image_size) * 2 - 1
    cache = cache_reference(backbone, image)
    step_seconds: dict[str, list[float]] = {"plain": [], "joint": [], "combined": []}

    def sampling(name: str) -> Callable[[], object]:
        config = SamplingConfig(guidance="combined" if name == "combined" else "joint", steps=steps)

        def sample() -> None:
            times: list[float] = []

            def progress(done: int, total: int) -> None:
                if backbone.device.type == "cuda":
                    torch.cuda.synchronize(backbone.device)
                times.append(time.perf_counter())

            sample_images(backbone, None if name == "plain" else adapters, cache, [PROMPT], config, progress=progress)
            step_seconds[name] += [later - earlier for earlier, later in zip(times, times[1:], strict=False)]

        return sample

    cases = {"caching": lambda: cache_reference(backbone, image), **{name: sampling(name) for name in step_seconds}}
    seconds = {name: statistics.median(took) for name, took in paired_seconds(cases, rounds, backbone.device).items()}
    rows = []
    for name, a_step in step_seconds.items():
        total = seconds[name] + (PAPER_STEPS - steps) * statistics.median(a_step)
        cached = "-" if name == "plain" else f"{seconds['caching']:.3f} s"
        whole = total + (0.0 if name == "plain" else seconds["caching"])
        rows.append([name, str(3 if name == "combined" else 2), cached, f"{total:.3f} s", f"{whole:.3f} s"])
    title = f"One image in {PAPER_STEPS} DDIM steps (medians of {rounds} rounds)"
    print_table(title, ["guidance", "branches", "to cache", f"{PAPER_STEPS} steps", "together"], rows)
    if steps < PAPER_STEPS:
        print(f"EXTRAPOLATED: {steps} steps were measured, the other {PAPER_STEPS - steps} are a step's median each.")
    trained, in_equations = trainable_parameters(backbone.unet)
    print(
        f"Extra parameters in fp16: {2 * in_equations / 1e6:.1f} MB by Eq. 3 to 5 alone (the paper's way), "
        f"{2 * trained / 1e6:.1f} MB in all."
    )


main = functools.partial(run_benchmark, measure, {"steps": 5, "rounds": 3}, {"steps": PAPER_STEPS})


if __name__ == "__main__":
    sys.exit(main())
