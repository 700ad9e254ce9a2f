"""What a dataset will take, by the shards that were made: records, seconds, memory and disk of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from datagen.dataset import STAGES, Dataset

MEASURED = 64


@dataclass(frozen=True)
class StageEstimate:
    """A stage of the whole dataset: records that enter it, seconds of its work, bytes it leaves; and what is done.

    `memory` is the most that its process held, with models and libraries, `device_memory` that on the GPU, in bytes;
    None where it was not recorded or there is no GPU. What a vLLM server holds is its own and not in them.
    """

    stage: str
    records: int
    seconds: float
    bytes: int
    seconds_left: float
    memory: int | None
    device_memory: int | None


def estimate(dataset: Dataset) -> list[StageEstimate]:
    """The stages of the configured dataset, reckoned from its finished shards.

    Every shard counts as the mean of the first `MEASURED` of these, loading of models aside; with a target, as many
    shards are reckoned as it takes at their rate of acceptance. Raises ValueError where no shard is
    finished or no triplet was accepted.
    """
    config = dataset.config
    done = dataset.finished()
    finished = done[:MEASURED]
    if not finished:
        raise ValueError(f"{dataset.run} holds no finished shard to reckon from")
    accepted = sum(dataset.records_out("triplets", finished)) / len(finished)
    shards = float(config.shards or 0)
    if config.target_triplets is not None:
        if not accepted:
            raise ValueError(f"{dataset.run}: none of {len(finished)} shards gave a triplet: see their rejects")
        needed = max(config.target_triplets / accepted, 1.0)
        shards = needed if config.shards is None else min(needed, shards)
    lines = []
    for stage in STAGES:
        markers = dataset.markers(stage, finished)
        seconds = sum(marker.execution.get("seconds", 0.0) for marker in markers) / len(finished)
        size = sum(marker.shard.bytes + marker.rejects.bytes for marker in markers) / len(finished)
        records = sum(marker.records_in for marker in markers) / len(finished)
        left = seconds * max(shards - len(done), 0)
        peaks = [
            max((marker.execution[name] for marker in markers if name in marker.execution), default=None)
            for name in ("memory", "device_memory")
        ]
        whole = (round(records * shards), seconds * shards, round(size * shards), left)
        lines.append(StageEstimate(stage, *whole, *peaks))
    return lines


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3.5 h", "2.1 d"."""
    for unit, size, digits in (("d", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def table(lines: list[StageEstimate]) -> str:
    """An estimate as lines of text, with its sum."""
    rows = [("stage", "records", "time", "disk", "memory", "GPU memory")]
    for line in lines:
        peaks = [f"{peak / 1e9:.1f} GB" if peak is not None else "-" for peak in (line.memory, line.device_memory)]
        rows.append(
            (line.stage, f"{line.records:,}", duration(line.seconds), f"{line.bytes / 1e9:.3f} GB", peaks[0], peaks[1])
        )
    seconds, size = sum(line.seconds for line in lines), sum(line.bytes for line in lines)
    rows.append(("all", "", duration(seconds), f"{size / 1e9:.3f} GB", "", ""))
    return "\n".join(
        f"{stage:<10}{records:>12}{time:>10}{disk:>14}{memory:>10}{device:>12}".rstrip()
        for stage, records, time, disk, memory, device in rows
    )
