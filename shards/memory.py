"""Memory: what this process has held at most, for markers, and batches as large as a GPU's memory holds."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

PROCESS = Path("/proc/self")
Record = TypeVar("Record")
Result = TypeVar("Result")


def forget_peaks() -> None:
    """Count anew from here on, where the system lets a process do so."""
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def resident_peak(process: Path = PROCESS) -> int | None:
    """Bytes of resident memory that a process has held at most; None where the system does not say."""
    with contextlib.suppress(OSError):
        if peak := re.search(r"VmHWM:\s*(\d+) kB", (process / "status").read_text()):
            return 1024 * int(peak[1])
    return None


def peaks() -> dict[str, int]:
    """Bytes of resident memory, and of the GPU's memory that torch held if it held any; children are not counted."""
    found = {}
    if (resident := resident_peak()) is not None:
        found["memory"] = resident
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        found["device_memory"] = torch.cuda.max_memory_reserved()
    return found


def in_batches(
    records: Sequence[Record], execution: dict[str, Any], work: Callable[[Sequence[Record]], Result]
) -> Iterator[tuple[Sequence[Record], Result]]:
    """Yield (batch, `work(batch)`) over all records, `execution["batch_size"]` at a time.

    Where the GPU's memory runs out, that size is halved and the batch tried again: it is found, and stands recorded.
    """
    start = 0
    while start < len(records):
        batch = records[start : start + execution["batch_size"]]
        try:
            result = work(batch)
        except RuntimeError as error:
            # torch's OutOfMemoryError, known by its name: who has met none has perhaps not imported torch.
            if type(error).__name__ != "OutOfMemoryError" or len(batch) == 1:
                raise
            execution["batch_size"] = (len(batch) + 1) // 2
            continue
        yield batch, result
        start += len(batch)
