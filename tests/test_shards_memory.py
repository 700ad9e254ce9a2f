"""Peaks of memory in markers, and in what a dataset is estimated to take."""

import subprocess
import sys

SCRIPT = """
from shards import memory
block = b"x" * 200_000_000
held = memory.peaks()["memory"]
del block
assert memory.peaks()["memory"] > 200_000_000, "a peak is forgotten by itself"
memory.forget_peaks()
print(held, memory.peaks()["memory"], sorted(memory.peaks()))
"""


def test_a_peak_lasts_until_it_is_forgotten() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split(
        " ", 2
    )
    assert int(said[0]) > 200_000_000 > int(said[1]) > 0
    assert said[2].strip() == "['memory']"  # no GPU was touched
