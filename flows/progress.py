"""How far a command is: on a terminal a bar that renews itself, else a plain line now and then."""

from __future__ import annotations

import shutil
import sys
import time

from datagen.estimate import duration

BAR = 24


class Progress:
    """Work of known length, with rate and time left; these count from the first call, since resumed work was done
    before.

    The end is told by whoever did the work, so a finished bar goes away.
    """

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self._out = sys.stdout
        self._bar = self._out.isatty()
        self._every = 0.5 if self._bar else 10.0
        self._first: tuple[int, float] | None = None
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        if self._bar and done >= total:
            print("\r\x1b[K", end="", file=self._out, flush=True)
        elif done < total and now - self._last >= self._every:
            self._last = now
            text = f"{self.name} {done} of {total} {self.unit}{rate_and_time_left(done, total, self._first)}"
            if self._bar:
                filled = BAR * done // total
                text = f"[{'#' * filled}{'.' * (BAR - filled)}] {text}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r{text}\x1b[K" if self._bar else text, end="" if self._bar else "\n", file=self._out, flush=True)


def rate_and_time_left(done: int, total: int, first: tuple[int, float]) -> str:
    """`, 3.21 a second, 12 s left`; `first` is how much had been done at a `time.monotonic()`. Empty at the start."""
    before, since = first
    seconds = time.monotonic() - since
    if done <= before or seconds <= 0:
        return ""
    rate = (done - before) / seconds
    return f", {rate:.2f} a second, {duration((total - done) / rate)} left"
