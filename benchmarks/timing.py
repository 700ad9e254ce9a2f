"""Paired timing: what is compared runs by turns in one process, so that drift and neighbours weigh on all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

Case = Callable[[], object]


def paired_seconds(
    cases: Mapping[str, Case],
    rounds: int,
    device: torch.device,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, list[float]]:
    """The seconds of every case in each of the rounds, after one round that is not counted.

    Each round runs all cases once and begins with another one. `around` names contexts that a case runs in and that
    are entered and left outside its time. ValueError for no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with (around or {}).get(name, nullcontext)():
                took = _seconds(cases[name], device)
            if number > 0:
                seconds[name].append(took)
    return seconds


def median_ratio(seconds: Mapping[str, Sequence[float]], name: str, other: str) -> float:
    """The median over the rounds of one case's time divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))


def peak_memory(case: Case, device: torch.device) -> int | None:
    """The bytes that a case needs at its peak above what lies on the GPU before it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    case()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP a second of a large square matrix product, the best of several: what the device can reach at most."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(_seconds(lambda: one @ other, device) for _ in range(10))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a small table: the first column to the left, the others to the right."""
    widths = [max(len(row[n]) for row in (columns, *rows)) for n in range(len(columns))]
    print(f"\n{title}")
    for row in (columns, *rows):
        cells = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join((row[0].ljust(widths[0]), *cells)).rstrip())


def megabytes(size: int | None) -> str:
    """A size as text in MB, "-" where it is not known."""
    return "-" if size is None else f"{size / 1e6:,.0f} MB"


def _seconds(case: Case, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    case()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
