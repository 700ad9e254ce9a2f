"""`python -m miniature.train NAME|all`: draws the pool if needed, then trains one checkpoint, or all in order.

`torchrun --nproc-per-node 2 -m miniature.train NAME` trains by two processes, each with a batch of its own.
"""

import argparse
import importlib
import os
from pathlib import Path

import torch

from dreamcache.processes import join_processes, process_rank, wait_for_all
from miniature.train.data import MEMBERS, VIEWS, Pool, render_pool
from miniature.train.taxonomy import write_taxonomy
from miniature.train.workspace import CHECKPOINTS, Workspace, restore
from shards.memory import keep_freed_memory

# The detector and the U-Net begin with what clip has learned, and the U-Net sees what the autoencoder makes of scenes.
ORDER = ("llama", "clip", "vae", "vae_whole", "dino", "sam", "detector", "unet")
SCENES = 48_000


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.train", description=__doc__)
    parser.add_argument("name", choices=[*ORDER, "pool", "all"])
    parser.add_argument("--steps", type=positive, help="train for this many steps instead of the recipe's own number")
    parser.add_argument("--refine", action="store_true", help="begin from the finished checkpoint, not from nothing")
    parser.add_argument("--batch", type=positive, help="scenes a step of the U-Net (default: 32)")
    parser.add_argument("--compile", action="store_true", help="compile U-Net or DINO: minutes first, then faster")
    parser.add_argument("--scenes", type=int, default=SCENES, help="drawn scenes in the pool (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores, or one where torchrun starts it)")
    parser.add_argument("--work", type=Path, default=Path(".miniature"), help="pool and states (default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="finished checkpoints go here")
    arguments = parser.parse_args()
    for option, users in {"batch": ("unet", "all"), "compile": ("unet", "dino", "all")}.items():
        if getattr(arguments, option) and arguments.name not in users:
            parser.error(f"--{option} is for {', '.join(users)}, not for {arguments.name}")
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pool_folder = arguments.work / f"pool-{arguments.scenes}-of-{MEMBERS}x{VIEWS}"
    device = join_processes()
    if process_rank() == 0:
        for before in list(arguments.checkpoints.rglob(".*.old")):  # renamed on the way
            restore(before)
        render_pool(pool_folder, arguments.scenes, workers=os.cpu_count() or 1)
        write_taxonomy(arguments.checkpoints)
    wait_for_all()
    workspace = Workspace(
        pool=Pool(pool_folder),
        states=arguments.work / ("refined" if arguments.refine else "states"),
        checkpoints=arguments.checkpoints,
        device=device,
        steps=arguments.steps,
        refine=arguments.refine,
        batch=arguments.batch,
        compile=arguments.compile,
    )
    names = {"all": ORDER, "pool": ()}.get(arguments.name, (arguments.name,))
    for name in names:
        importlib.import_module(f"miniature.train.{name}").train(workspace)


if __name__ == "__main__":
    main()
