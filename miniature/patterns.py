"""Two-colour surface patterns as boolean masks, coarse enough to survive an 8x downsampling autoencoder."""

from __future__ import annotations

import numpy as np

PATTERNS: tuple[str, ...] = (
    "plain",
    "stripes",
    "halves",
    "checks",
    "dots",
    "rings",
    "zigzag",
    "patches",
    "diamonds",
    "stars",
)


def pattern_mask(pattern: str, period: float, angle: float, width: int, centre: tuple[float, float]) -> np.ndarray:
    """Where the pattern colour covers the main colour on a square surface.

    period: one repeat as a fraction of the square's side; angle: degrees; width: pixels;
    centre: where the pattern starts, (x, y) as fractions of the side.
    Returns (width, width) bool. Raises ValueError for an unknown pattern.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"unknown pattern {pattern!r}; choose one of {', '.join(PATTERNS)}")
    if pattern == "plain":
        return np.zeros((width, width), dtype=bool)
    axis = (np.arange(width, dtype=np.float32) + 0.5) / width
    x, y = axis[None, :] - np.float32(centre[0]), axis[:, None] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(np.radians(angle))), np.float32(np.sin(np.radians(angle)))
    u = (cos * x + sin * y) / np.float32(period)
    v = (cos * y - sin * x) / np.float32(period)
    if pattern == "stripes":
        return _fraction(u) < 0.5
    if pattern == "halves":
        return u > 0.0
    if pattern == "checks":
        return (_fraction(u) < 0.5) ^ (_fraction(v) < 0.5)
    if pattern == "zigzag":
        return _fraction(u + 0.8 * np.abs(_fraction(v * 0.8) - 0.5)) < 0.5
    if pattern == "diamonds":
        return np.abs(_fraction(u + 0.5) - 0.5) + np.abs(_fraction(v * 0.7 + 0.5) - 0.5) < 0.38
    if pattern == "rings":
        return _fraction(np.sqrt(u * u + v * v) + 0.25) < 0.5
    if pattern == "patches":
        return np.sin(4.4 * u + 1.9 * np.sin(3.2 * v)) + np.sin(5.0 * v + 1.3 * np.sin(2.4 * u)) > 0.0
    # dots and stars sit on a lattice whose odd rows are shifted by half a period
    row = np.floor(v + 0.5)
    x, y = _fraction(u + 0.5 + 0.5 * (row % 2)) - 0.5, v - row
    if pattern == "dots":
        return x * x + y * y < 0.1
    return np.sqrt(x * x + y * y) < 0.36 + 0.1 * np.cos(5 * np.arctan2(x, -y))


def _fraction(values: np.ndarray) -> np.ndarray:
    """The fractional part, in [0, 1)."""
    return values - np.floor(values)
