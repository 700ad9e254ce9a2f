"""How far generated scenes are from drawn ones."""

import sys

import numpy as np
import pytest

from dreamcache.configs import SamplingConfig
from miniature import distance


def test_the_distance_of_gaussians_is_the_known_one() -> None:
    rng = np.random.default_rng(0)
    some = rng.normal(size=(100_000, 3))
    assert distance.frechet_distance(some, some) == pytest.approx(0.0, abs=1e-6)
    moved = 2.0 * rng.normal(size=(100_000, 3)) + (1.0, 0.0, 0.0)
    assert distance.frechet_distance(some, moved) == pytest.approx(1.0 + 3 * (2 - 1) ** 2, rel=0.03)


def test_what_two_steps_leave_unfinished_is_farther_than_drawn_scenes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distance, "DRAWN", 48)
    monkeypatch.setattr(distance, "SAMPLING", SamplingConfig(steps=2))
    monkeypatch.setattr(sys, "argv", ["distance", "--images", "16"])
    distance.main()
    lines = capsys.readouterr().out.splitlines()
    near, far = ([float(part.split()[1]) for part in line.split("  ")[0].split(", ")] for line in lines)
    assert len(lines) == 2 and all(1.1 * a < b for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize(("words", "said"), [(["--images", "1"], "too few"), (["nowhere"], "nowhere")])
def test_what_cannot_be_measured_is_said_before_anything_is_drawn(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["distance", *words])
    with pytest.raises(SystemExit, match="2"):
        distance.main()
    printed = capsys.readouterr()
    assert said in printed.err and not printed.out
