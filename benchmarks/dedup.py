"""Dedup at scale: `python -m benchmarks.dedup` runs the stage on a million captions, and datasketch beside it.

Printed: seconds and captions a second of the stage, one process, shards read and written; the CPU's microseconds a
caption, which other work on the machine disturbs less; bytes a caption that its index takes;
precision and recall of what it rejects against an exhaustive comparison by exact Jaccard similarity, on a sample;
datasketch's MinHashLSH on as many captions as `--datasketch`, with the same bands and rows, if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from datagen import dedup
from datagen.caption_index import CaptionIndex
from datagen.dedup import DedupConfig, normalized_words
from datagen.sketches import shingles
from shards.files import read_json_lines
from shards.markers import rejects_path
from shards.stage import StageSpec, plan_shard

CLASSES, PLACES, WORDS = 400, 100, 3000
REPEATED = 0.08
RECENT = 2000
CAPTIONS_A_SHARD = 10_000
BLOCKED = tuple(json.loads((Path(dedup.__file__).parent / "blocked_words.json").read_text()))
# No cap on classes or places, so that each reject is one of a duplicate; the word list is the full profile's.
CONFIG = DedupConfig(max_class_share=1.0, max_class_and_place_share=1.0, blocked_words=BLOCKED)


def captions(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Records of made-up captions of 9 to 16 words, of which some repeat one of the last `RECENT` but for few words."""
    generator = random.Random(seed)
    recent: list[dict[str, str]] = []
    for number in range(count):
        if recent and generator.random() < REPEATED:
            earlier = generator.choice(recent)
            words = earlier["caption"].split()
            for _ in range(generator.randrange(4)):
                words[generator.randrange(len(words))] = f"w{generator.randrange(WORDS)}"
            record = {**earlier, "caption": " ".join(words)}
        else:
            kind, place = f"class{generator.randrange(CLASSES)}", f"place{generator.randrange(PLACES)}"
            words = [f"w{int(WORDS * generator.random() ** 2)}" for _ in range(generator.randint(6, 13))]
            record = {"class": kind, "place": place, "caption": f"a {kind} {' '.join(words)} {place}"}
        record["key"] = f"{number:09d}"
        recent.append(record)
        if len(recent) > RECENT:
            recent.pop(0)
        yield record


def write_captions(run: Path, count: int) -> int:
    """Caption shards as the dedup stage takes them; returns how many."""
    records, shards = captions(count), -(-count // CAPTIONS_A_SHARD)
    for index in range(shards):
        size = min(CAPTIONS_A_SHARD, count - index * CAPTIONS_A_SHARD)
        with plan_shard(run, StageSpec("captions", 1, {}), index).writing(records_in=size) as out:
            for _ in range(size):
                out.add(next(records))
    return shards


def run_stage(run: Path, shards: int) -> tuple[float, float, CaptionIndex]:
    """The seconds that the stage takes over all caption shards, those of the CPU, and its index after."""
    spec = StageSpec("dedup", 1, CONFIG.content())
    started, busy, index = time.perf_counter(), time.process_time(), CaptionIndex(CONFIG)
    for number in range(shards):
        plan = plan_shard(run, spec, number, [run / "captions" / f"{number:05d}.jsonl"])
        dedup.run(plan, CONFIG, index, CAPTIONS_A_SHARD * shards)
    return time.perf_counter() - started, time.process_time() - busy, index


def exact_rejects(records: list[dict[str, str]]) -> set[str]:
    """The keys that an exhaustive comparison with all captions kept before rejects."""
    kept: list[set[str]] = []
    rejected = set()
    for record in records:
        own = shingles(normalized_words(record["caption"]))
        if any(len(own & other) >= CONFIG.near_duplicate * len(own | other) for other in kept):
            rejected.add(record["key"])
        else:
            kept.append(own)
    return rejected


def run_datasketch(count: int) -> float | None:
    """Seconds of the CPU that datasketch takes for so many of the captions, or None where it is not installed."""
    if importlib.util.find_spec("datasketch") is None:
        return None
    from datasketch import MinHash, MinHashLSH

    records = list(captions(count))
    started = time.process_time()
    lsh = MinHashLSH(num_perm=CONFIG.bands * CONFIG.rows, params=(CONFIG.bands, CONFIG.rows))
    for record in records:
        sketch = MinHash(num_perm=CONFIG.bands * CONFIG.rows, seed=1)
        sketch.update_batch([text.encode() for text in shingles(normalized_words(record["caption"]))])
        if not lsh.query(sketch):
            lsh.insert(record["key"], sketch)
    return time.process_time() - started


def resident_bytes() -> int:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    """Print all figures, one line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dedup", description=__doc__)
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=3_000, help="captions of the exhaustive comparison")
    parser.add_argument("--datasketch", type=int, default=20_000, help="captions that datasketch gets")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        shards = write_captions(run, options.captions)
        run_stage(run, 1)  # imports and code are warm, the captions of one shard forgotten again
        before = resident_bytes()
        seconds, busy, index = run_stage(run, shards)
        size = resident_bytes() - before
        rejected: dict[str, str] = {}
        for path in sorted((run / "dedup").glob("[0-9]*.jsonl")):
            if ".rejects" not in path.name:
                rejected |= {record["key"]: record["reason"] for record in read_json_lines(rejects_path(path))}
    kept = options.captions - len(rejected)
    rate = options.captions / seconds
    near = sum(reason == "near duplicate" for reason in rejected.values())
    print(f"stage: {options.captions:,} captions in {seconds:.1f} s, {rate:,.0f} a second, in one process")
    print(f"a million would take {1e6 / rate:.1f} s; the CPU {1e6 * busy / options.captions:.1f} us a caption")
    print(f"kept {kept:,}; rejected {near:,} near and {len(rejected) - near:,} exact duplicates")
    print(f"index: {size / kept:,.0f} bytes a caption kept, {size / 1e6:,.0f} MB, class {type(index).__name__}")
    sample = list(captions(min(options.sample, options.captions)))
    exact, found = exact_rejects(sample), {record["key"] for record in sample} & rejected.keys()
    right = len(exact & found)
    print(
        f"against exact Jaccard on {len(sample):,} captions: precision {right / max(len(found), 1):.4f}, "
        f"recall {right / max(len(exact), 1):.4f} ({len(exact)} to find)"
    )
    beside = run_datasketch(options.datasketch)
    if beside is None:
        print("datasketch is not installed: pip install datasketch to measure it beside")
    else:
        each, ratio = 1e6 * beside / options.datasketch, beside / options.datasketch / (busy / options.captions)
        print(f"datasketch: {each:.0f} us of the CPU a caption, {ratio:.1f} times what the stage takes")


if __name__ == "__main__":
    main()
