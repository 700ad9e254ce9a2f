"""The pool of drawn scenes: who is in it, what is drawn again, how batches are taken and their pictures degraded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from miniature.train import data
from miniature.train.data import GROUP, MEMBERS, Pool, degrade_some, pool_instance, render_pool


def test_the_pool_shows_instances_that_share_a_palette_in_turn(pool: Pool) -> None:
    assert len(pool) == 2 * GROUP
    members = [pool_instance(0, member) for member in range(MEMBERS)]
    for even, odd in zip(members[::2], members[1::2], strict=True):
        assert replace(odd, proportions=even.proportions) == even != odd
    assert len({member.palette for member in members}) == 1 and len(set(members)) == MEMBERS
    assert {scene["class"] for scene in pool.scenes[:GROUP]} == {members[0].class_name}
    images = pool.images([0, 1])
    assert images.shape == (2, 3, 128, 128) and -1 <= images.min() < images.max() <= 1
    left, top, right, bottom = (round(side) for side in pool.scenes[0]["box"])
    assert pool.masks([0])[0, top:bottom, left:right].mean() > 0.2


def test_rendering_draws_only_missing_chunks(pool: Pool) -> None:
    before = {file: file.stat().st_mtime_ns for file in pool.folder.iterdir()}
    render_pool(pool.folder, scenes=2 * GROUP, workers=1)
    assert before == {file: file.stat().st_mtime_ns for file in pool.folder.iterdir()}


def test_a_pool_that_lost_an_array_is_drawn_anew(tmp_path: Path) -> None:
    render_pool(tmp_path, 1, workers=1)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "masks.npy").unlink()
    (tmp_path / "images.npy").write_bytes(whole["images.npy"][:200])
    render_pool(tmp_path, 1, workers=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_half_of_a_crowded_batch_surely_shows_two_objects(pool: Pool) -> None:
    indices = pool.sample_crowded(400, torch.Generator().manual_seed(0))
    assert len(indices) == 400 and set(indices) == set(range(len(pool)))
    shown = [pool.scenes[index]["second"] is not None for index in indices]
    assert all(shown[:200]) and not all(shown[200:])


def test_half_of_a_batch_is_blurred_each_image_by_a_deviation_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(200, 3, 24, 24, generator=torch.Generator().manual_seed(1)) - 0.5
    degraded = degrade_some(images, torch.Generator().manual_seed(0))
    touched = (degraded != images).flatten(1).any(1)
    assert 70 < touched.sum() < 130
    monkeypatch.setattr(data, "MOST_NOISE", 0.0)
    blurred = degrade_some(images, torch.Generator().manual_seed(0))
    assert torch.equal(blurred[~touched], images[~touched])
    _, blur, noise = torch.rand(3, 200, generator=torch.Generator().manual_seed(0))
    for row in touched.nonzero()[:5, 0].tolist():
        expected = images[row].numpy()
        for axis in (1, 2):
            expected = gaussian_filter1d(expected, 0.1 + 1.4 * float(blur[row]), axis, mode="nearest", radius=4)
        assert torch.allclose(blurred[row], torch.from_numpy(expected), atol=1e-5)
    deviations = (degraded - blurred).flatten(1).std(1)[touched]
    assert torch.allclose(deviations, 0.1 * noise[touched], atol=0.01)
