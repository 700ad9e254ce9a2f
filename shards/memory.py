"""The memory that this process has held at most, for markers: what a machine needs that does the same work."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

PROCESS = Path("/proc/self")


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
