"""What a large dataset takes, on paper: `python -m benchmarks.large_dataset`, by default 5 million triplets on 64 GPUs.

Arithmetic from the full profile's sizes, from throughput that others published, each with its source, and from what the
benchmarks here measured, given as options. What is not given stands there as not measured; nothing is made up for it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

from datagen.dataset import STAGES
from flows.heartbeats import HEARTBEAT_SECONDS
from flows.profiles import load_profile


@dataclass(frozen=True)
class Published:
    """Seconds of an A100 that a record takes in a stage, by whom, and how they follow from what was published."""

    stage: str
    seconds: float
    source: str


# One record at a time where batches are faster, so the hours are rather too many than too few.
PUBLISHED = (
    Published(
        "captions",
        60 / (6.6 * 75),
        "Llama 3.1 8B in vLLM, 6.6 x 75 tokens/s at 8 requests (the 3B is faster), 60 tokens a caption assumed: "
        "johnmusgrave.com/p/vllm-throughput-latency-sweep-on",
    ),
    Published(
        "images",
        3.31 * 25 / 30,
        "SDXL, 1024 px, bfloat16, 3.31 s for 30 steps, here 25: pytorch.org/blog/accelerating-generative-ai-3",
    ),
    Published(
        "masks",
        1 / 8.37 + 0.15,
        "Grounding DINO 8.37 images/s, card not named (appendix I of arXiv 2303.05499, as quoted in "
        "github.com/IDEA-Research/GroundingDINO/issues/50), and SAM ViT-H 0.15 s: segment-anything.com",
    ),
)
A100_DOLLARS = (1.49, 2.49)
DOLLARS_SOURCE = "A100 80 GB by the hour, on demand, early 2026: pricegpu.pages.dev/blog/h100-vs-a100-cloud-price"
POLL_SECONDS = 10  # of a worker, by Prefect's default


def report(triplets: int, gpus: int, accepted: float, measured: dict[str, float | None]) -> Iterator[str]:
    """The lines of the estimate; `accepted` is the share of captions that become triplets.

    `measured` may hold, or hold as None: shard_seconds (what the DAG adds to a shard), database_bytes (a shard),
    dedup_seconds (a million captions), index_bytes (a caption), triplet_bytes (on disk, over all stages). Raises
    ValueError for numbers out of their range.
    """
    if triplets < 1 or gpus < 1 or not 0 < accepted <= 1:
        raise ValueError("triplets and gpus have to be at least 1, accepted above 0 and at most 1")
    config = load_profile("full").dataset
    captions = math.ceil(triplets / accepted)
    shards = math.ceil(captions / config.captions_per_shard)
    blocks = math.ceil(shards / config.shards_per_block)
    record = sum(one.seconds for one in PUBLISHED)
    gpu_hours = captions * record / 3600

    yield f"{triplets:,} triplets on {gpus} GPUs, by the full profile"
    yield f"captions: {triplets:,} / {accepted:g} accepted = {captions:,}" + (
        " (all accepted: a lower bound; the true models' share is not measured)" if accepted == 1 else ""
    )
    yield f"shards: / {config.captions_per_shard} = {shards:,}; blocks: / {config.shards_per_block} = {blocks:,}"
    tasks = len(STAGES) * shards
    yield f"Prefect: {2 * blocks:,} block runs, 2 a block, and {tasks:,} task runs, {len(STAGES)} a shard"
    for one in PUBLISHED:
        yield f"{one.stage}: {one.seconds:.2f} s a record, {100 * one.seconds / record:.0f}% of the GPUs ({one.source})"
    yield f"GPU time: {captions:,} x {record:.2f} s = {gpu_hours:,.0f} GPU-hours, {gpu_hours / gpus:,.0f} h on {gpus}"
    low, high = (f"${gpu_hours * dollars:,.0f}" for dollars in A100_DOLLARS)
    yield f"cost: {low} to {high} at ${A100_DOLLARS[0]} to ${A100_DOLLARS[1]} ({DOLLARS_SOURCE})"

    def scaled(name: str, name_of_value: str, option: str, factor: float, unit: str, by: str) -> str:
        value = measured.get(option)
        if value is None:
            return f"{name}: not measured (--{option.replace('_', '-')}, by {by})"
        return f"{name}: {value:g} {name_of_value} = {value * factor:,.2f} {unit}"

    orchestration, dedup = "python -m benchmarks.orchestration", "python -m benchmarks.dedup"
    disk = f"bytes a triplet x {triplets:,}"
    hours = shards / gpus / 3600
    yield scaled("the DAG's own time", f"s a shard x {shards:,} / {gpus}", "shard_seconds", hours, "h", orchestration)
    yield scaled("database", f"bytes a shard x {shards:,}", "database_bytes", shards / 1e9, "GB", orchestration)
    yield scaled("dedup, one after another", "s a million captions", "dedup_seconds", captions / 3.6e9, "h", dedup)
    yield scaled("dedup's index", f"bytes a caption x {captions:,}", "index_bytes", captions / 1e9, "GB", dedup)
    yield scaled("storage", disk, "triplet_bytes", triplets / 1e12, "TB", "dreamcache estimate")

    yield "What gives way first:"
    after = sum(one.seconds for one in PUBLISHED if one.stage != "captions")
    block_hours = config.captions_per_shard * config.shards_per_block * after / 3600
    idle = (math.ceil(blocks / gpus) * gpus - blocks) * block_hours
    yield (
        f"1. The last round: {blocks:,} blocks on {gpus} GPUs are {blocks / gpus:.1f} rounds of {block_hours:.1f} h; "
        f"{idle:,.0f} GPU-hours are idle at its end, {100 * idle / (gpu_hours + idle):.0f}%. A smaller "
        "shards_per_block shortens it, and loads the models more often."
    )
    image = next(one.seconds for one in PUBLISHED if one.stage == "images")
    yield (
        f"2. A GPU that is taken away loses the shard in hand, {config.captions_per_shard * image / 60:.0f} min of "
        "images at most, and its block waits two minutes until it is called dead."
    )
    flying = gpus * config.shards_per_block * config.captions_per_shard
    yield (
        f"3. With target_triplets every block in flight counts as wholly accepted: {flying:,} captions on {gpus} GPUs, "
        f"so for the last {100 * min(flying / captions, 1):.0f}% fewer blocks than GPUs are begun. Set shards."
    )
    yield (
        f"4. Prefect's server answers some {gpus / POLL_SECONDS + gpus / HEARTBEAT_SECONDS:.0f} polls and heartbeats a "
        "second, besides what tasks and logs send: PostgreSQL instead of SQLite."
    )
    yield f"5. Shards have five digits: {100_000 * config.captions_per_shard:,} captions are the most."


def main() -> None:
    """Print the estimate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_dataset", description=__doc__)
    parser.add_argument("--triplets", type=int, default=5_000_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--accepted", type=float, default=1.0, help="share of captions that become triplets")
    parser.add_argument("--shard-seconds", type=float, help="that the DAG adds to a shard of images")
    parser.add_argument("--database-bytes", type=float, help="of Prefect's server, for a shard")
    parser.add_argument("--dedup-seconds", type=float, help="for a million captions")
    parser.add_argument("--index-bytes", type=float, help="of dedup's index, for a caption")
    parser.add_argument("--triplet-bytes", type=float, help="on disk over all stages: dreamcache estimate says it")
    options = vars(parser.parse_args())
    sizes = (options.pop("triplets"), options.pop("gpus"), options.pop("accepted"))
    try:
        print("\n".join(report(*sizes, options)))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
