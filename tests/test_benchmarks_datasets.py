"""The benchmarks of dedup and of shards run, at a size that says nothing about speed."""

import re
import sys

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
    shards.main()
    assert "WebDataset reads 6 of 6 triplets unaided" in capsys.readouterr().out
