"""What memory that a process keeps is worth on a CPU: `python -m benchmarks.kept_memory [miniature|sd15|FOLDER]`.

Processes with and without `keep_freed_memory` take turns, since it holds for a process's whole life.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.backbones import PROMPT, benchmark_backbone
from benchmarks.timing import Case, median_ratio, paired_seconds, print_table
from dreamcache.backbone import Backbone
from shards.memory import keep_freed_memory

CPU = torch.device("cpu")
KINDS = ("kept", "given back")


def measure(backbone: Backbone, rows: int, passes: int) -> dict[str, float]:
    """The seconds (medians of the passes) that a U-Net's passes and the decoding of images take in this process."""
    latents, text = torch.randn(rows, *backbone.latent_shape), backbone.encode_prompts([PROMPT] * rows)

    def forward_and_backward() -> None:
        learned = latents.clone().requires_grad_()
        backbone.unet(learned, 500, text).sample.square().mean().backward()

    cases: dict[str, Case] = {
        f"U-Net pass of {rows} rows": torch.no_grad()(lambda: backbone.unet(latents, 500, text)),
        f"forward and backward pass of {rows} rows": forward_and_backward,
        f"decoding of {rows} images": lambda: backbone.decode_latents(latents),
    }
    return {name: statistics.median(took) for name, took in paired_seconds(cases, passes, CPU).items()}


def main(arguments: list[str]) -> int:
    """Print the table, or with --as the seconds of this process alone as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kept_memory", description=__doc__)
    parser.add_argument("backbone", nargs="?", default="miniature")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--passes", type=int, default=7, help="in each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--as", dest="kind", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.kind is not None:
        if given.kind == "kept":
            keep_freed_memory()
        print(json.dumps(measure(benchmark_backbone(given.backbone, CPU, torch.float32), given.rows, given.passes)))
        return 0
    command = [sys.executable, "-m", "benchmarks.kept_memory", *arguments]
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(given.rounds):
        for kind in KINDS if number % 2 else reversed(KINDS):
            done = subprocess.run(
                [*command, "--as", kind], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True
            )
            for case, seconds in json.loads(done.stdout).items():
                found.setdefault(case, {}).setdefault(kind, []).append(seconds)
    rows = [
        [case, *(f"{statistics.median(took[kind]):.3f} s" for kind in KINDS), f"{median_ratio(took, *KINDS):.2f}"]
        for case, took in found.items()
    ]
    print_table(f"Freed memory (medians of {given.rounds} rounds)", ["", *KINDS, "ratio"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
