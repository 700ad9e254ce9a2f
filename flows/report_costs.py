"""The report's part on costs: device time and disk of every stage, and what they would be for more triplets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datagen.estimate import duration
from flows.evaluation_plans import COMPARED, SWEEP, TRAINED
from shards.markers import Marker


def costs(run: Path, markers: dict[str, list[Marker]]) -> dict[str, Any]:
    """Time, its share, the time a record and disk of every stage, training and the evaluations."""
    lines: list[tuple[str, float, int | None, int | None]] = []
    for stage, found in markers.items():
        seconds = sum(marker.execution.get("seconds", 0.0) for marker in found)
        size = sum(marker.shard.bytes + marker.rejects.bytes for marker in found)
        lines.append((stage, seconds, sum(marker.records_in for marker in found), size))
    names = ["training", TRAINED, COMPARED, *sorted(f"{SWEEP}{path.name}" for path in (run / SWEEP).glob("*"))]
    for name in names:
        path = run / name / "done.json"
        if not path.is_file():
            continue
        execution = json.loads(path.read_bytes())["execution"]
        parts = execution.get("seconds_by_part") or {"": execution.get("seconds", 0.0)}
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        for number, (part, seconds) in enumerate(parts.items()):
            records = execution.get("steps") if name == "training" else None
            lines.append((f"{name}: {part}" if part else name, seconds, records, None if number else size))
    total, most = sum(line[1] for line in lines), max([line[1] for line in lines] + [1e-9])
    rows = [
        {
            "name": name, "time": _short(seconds), "percent": round(100 * seconds / most, 1),
            "share": f"{seconds / total:.0%}" if total else "", "each": f"{seconds / count:.3g} s" if count else "",
            "disk": "" if size is None else _disk(size),
        }
        for name, seconds, count, size in lines
    ]  # fmt: skip
    made = sum(marker.records_out for marker in markers.get("triplets", ()))
    dataset = sum(line[1] for line in lines[: len(markers)])
    stored = sum(line[3] or 0 for line in lines[: len(markers)])
    each = ""
    if made:
        each = (
            f" A triplet took {dataset / made:.3g} s and {_disk(round(stored / made))}, rejects included; 400,000, as "
            f"many as the paper has, would take {_short(400_000 * dataset / made)} here."
        )
    return {
        "rows": rows,
        "total": {"time": _short(total), "disk": _disk(sum(line[3] or 0 for line in lines))},
        "text": f"The sum over all processes of the work itself, loading of models aside: {total / 3600:.3g} "
        f"device-hours; times what an hour of the device costs, that is the run's price.{each}",
    }


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _disk(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
