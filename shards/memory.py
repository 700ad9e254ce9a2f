"""Memory: what this process has held at most, what it keeps, and batches as large as a GPU's memory holds."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

PROCESS = Path("/proc/self")
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # NVIDIA's and AMD's drivers
# Parameters of glibc's mallopt: the memory at the heap's end that is kept, what the heap grows by beyond what is asked
# for, and the size of blocks that are mapped by themselves.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
Record = TypeVar("Record")
Result = TypeVar("Result")


def keep_freed_memory() -> None:
    """Keep what is freed, up to two gigabytes, for what is asked for next: where models run on the CPU.

    glibc gives a large block back to the system at once, so that a layer's large output is mapped and zeroed anew, page
    by page: a fifth of the time of decoding images. Where there is a GPU, or another C library, nothing changes.
    """
    if not any(path.exists() for path in GPUS):
        with contextlib.suppress(AttributeError, OSError, TypeError):
            mallopt = ctypes.CDLL(None).mallopt
            # An older glibc takes 32 MB at most; the others alone would keep this one far lower than it is by default.
            if mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25):
                mallopt(_TRIM_THRESHOLD, 2**31 - 1)
                mallopt(_TOP_PAD, 2**28)


def forget_peaks() -> None:
    """Count anew from here on, where the system lets a process do so; freed memory that is kept is given back first."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
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
    records: Sequence[Record],
    execution: dict[str, Any],
    work: Callable[[Sequence[Record]], Result],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[Sequence[Record], Result]]:
    """Yield (batch, `work(batch)`) over all records, `execution["batch_size"]` at a time.

    `report` gets the number of records whose batch the caller has taken, and of all.

    Where the GPU's memory runs out, that size is halved and the batch tried again: it is found, stands recorded, and
    who passes the same `execution` for the next shard need not find it again.
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
        report(start, len(records))
