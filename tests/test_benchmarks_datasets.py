"""The benchmarks of dedup and of shards run, at a size that says nothing about speed."""

import re
import sys
from types import SimpleNamespace

import pytest

from benchmarks import dedup, shards


def test_dedup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dedup, "CAPTIONS_A_SHARD", 1500)
    monkeypatch.setattr(sys, "argv", ["dedup", "--captions", "4000", "--sample", "1000", "--datasketch", "200"])
    dedup.main()
    said = capsys.readouterr().out
    assert (found := re.search(r"precision ([\d.]+), recall ([\d.]+) \((\d+) to find\)", said))
    assert float(found[1]) == 1 and float(found[2]) > 0.95 and int(found[3]) > 30
    counts = re.search(r"kept ([\d,]+); rejected (\d+) near and (\d+) exact", said)
    assert counts and sum(int(count.replace(",", "")) for count in counts.groups()) == 4000
    assert list(dedup.captions(50)) == list(dedup.captions(100))[:50]


def test_shards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["shards", "--triplets", "6", "--side", "64", "--rounds", "1"])
    seconds, measured = {"bare tar": 1.0, "writing": 2.0, "decoding": 3.0, "reading": 12.0}, shards.median_seconds
    monkeypatch.setattr(shards, "median_seconds", lambda cases, rounds: measured(cases, rounds) and seconds)
    shards.main()
    said = capsys.readouterr().out
    assert "writing: 3 triplets/s" in said
    assert "writing against bare tar: 0.500 of its rate" in said
    assert "strict reading against bare JPEG decoding: 0.250 of its rate" in said
    assert "WebDataset reads 6 of 6 triplets unaided" in said


def test_the_first_round_of_shards_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def take(number: int) -> None:
        clock.now += (100.0, 1.0, 2.0, 4.0)[number]

    monkeypatch.setattr(shards, "time", clock)
    assert shards.median_seconds({"one": take, "another": take}, 3) == {"one": 2.0, "another": 2.0}
