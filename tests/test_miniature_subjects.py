"""The drawn world's subjects: what is sampled, and what is drawn from it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from miniature.patterns import pattern_mask
from miniature.subjects import (
    ACCESSORIES,
    CLASSES,
    LIVE_CLASSES,
    PATTERNS,
    Instance,
    draw_subject,
    sample_instance,
    sample_palette_sharer,
)


def on_grey(image: Image.Image) -> np.ndarray:
    """The drawing over mid grey, (H, W, 3) float in [0, 255]."""
    ground = Image.new("RGBA", image.size, (128, 128, 128, 255))
    return np.asarray(Image.alpha_composite(ground, image).convert("RGB"), dtype=float)


def instances(count: int, seed: int = 0) -> list[Instance]:
    rng = np.random.default_rng(seed)
    return [sample_instance(name, rng) for name in CLASSES for _ in range(count)]


def test_there_are_enough_classes_patterns_and_accessories() -> None:
    assert len(CLASSES) >= 18 and len(set(CLASSES)) == len(CLASSES)
    assert set(LIVE_CLASSES) < set(CLASSES) and {"cat", "dog"} <= set(LIVE_CLASSES)
    assert len(PATTERNS) >= 6 and len(ACCESSORIES) >= 5 and ACCESSORIES[0] == "none"


@pytest.mark.parametrize("name", CLASSES)
def test_drawing_fills_the_square_and_stands_on_its_bottom(name: str) -> None:
    rng = np.random.default_rng(1)
    for size in (31, 64, 72):
        image = draw_subject(sample_instance(name, rng), size)
        assert image.mode == "RGBA" and image.size == (size, size)
        alpha = np.asarray(image)[..., 3]
        rows, columns = np.nonzero(alpha.max(axis=1) > 100)[0], np.nonzero(alpha.max(axis=0) > 100)[0]
        assert rows[-1] == size - 1, "the subject floats"
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert max(height, width) >= size - 1
        assert abs((columns[0] + columns[-1]) - (size - 1)) <= 2, "the subject is not centred"
        share = alpha.mean() / 255
        assert 0.1 < share < 0.9


def test_alpha_is_antialiased_and_the_outside_is_clear() -> None:
    for instance in instances(1):
        alpha = np.asarray(draw_subject(instance, 64))[..., 3]
        between = ((alpha > 0) & (alpha < 255)).mean()
        assert 0.01 < between < 0.2
        assert (alpha == 0).any() and (alpha == 255).any()


def test_same_instance_gives_the_same_bytes_and_flip_mirrors_it() -> None:
    for instance in instances(1, seed=2):
        first = draw_subject(instance, 56)
        assert draw_subject(instance, 56).tobytes() == first.tobytes()
        mirrored = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert draw_subject(instance, 56, flip=True).tobytes() == mirrored.tobytes()


def test_drawing_and_sampling_leave_the_global_random_state_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    for instance in instances(1):
        draw_subject(instance, 24)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_sampling_depends_on_the_generator_alone() -> None:
    assert instances(2, seed=3) == instances(2, seed=3)
    assert instances(2, seed=3) != instances(2, seed=4)


def test_silhouettes_of_any_two_classes_differ_at_48_pixels() -> None:
    rng = np.random.default_rng(5)
    means = {}
    for name in CLASSES:
        plain = [replace(sample_instance(name, rng), accessory="none") for _ in range(12)]
        means[name] = np.mean([np.asarray(draw_subject(one, 48))[..., 3] / 255 for one in plain], axis=0)
    for one, other in itertools.combinations(CLASSES, 2):
        assert np.abs(means[one] - means[other]).mean() > 0.04, (one, other)


def test_instances_are_distinct_and_valid() -> None:
    for name in CLASSES[:4]:
        rng = np.random.default_rng(6)
        drawn = [sample_instance(name, rng) for _ in range(2000)]
        assert len(set(drawn)) == len(drawn)
        # by the birthday rule, 2,000 draws without a shared palette speak for far more than a million palettes alone
        assert len({one.palette for one in drawn}) == len(drawn)
        assert {one.pattern for one in drawn} == set(PATTERNS)
        assert {one.accessory for one in drawn} == set(ACCESSORIES)
        for one in drawn:
            assert all(0 <= value <= 1 for value in one.proportions)
            assert one.pattern_scale >= 6 / 64
            for a, b in itertools.combinations(one.palette, 2):
                assert np.abs(np.array(a) - b).sum() > 70


def test_palette_sharer_keeps_class_and_palette_and_changes_the_picture() -> None:
    rng = np.random.default_rng(7)
    for instance in instances(4, seed=8):
        sharer = sample_palette_sharer(instance, rng)
        assert (sharer.class_name, sharer.palette) == (instance.class_name, instance.palette)
        moved = np.abs(np.array(sharer.proportions) - instance.proportions).min()
        assert sharer.pattern != instance.pattern or moved >= 0.35
        change = np.abs(on_grey(draw_subject(sharer, 64)) - on_grey(draw_subject(instance, 64))).mean()
        assert change > 1.5, (instance, sharer)


def test_every_field_shows_in_the_picture() -> None:
    base = replace(sample_instance("teapot", np.random.default_rng(9)), pattern="plain", accessory="none")
    picture = on_grey(draw_subject(base, 64))
    changes = [replace(base, pattern=pattern) for pattern in PATTERNS[1:]]
    changes += [replace(base, accessory=accessory) for accessory in ACCESSORIES[1:]]
    changes += [replace(base, palette=(base.palette[2], base.palette[0], base.palette[1]))]
    for index, value in enumerate(base.proportions):
        proportions = (*base.proportions[:index], (value + 0.5) % 1, *base.proportions[index + 1 :])
        changes.append(replace(base, proportions=proportions))
    pictures = [on_grey(draw_subject(one, 64)) for one in changes]
    for one, other in itertools.combinations([picture, *pictures], 2):
        assert np.abs(one - other).mean() > 0.5


def test_pattern_masks_cover_about_half_of_the_surface() -> None:
    for pattern in PATTERNS[1:]:
        mask = pattern_mask(pattern, 0.2, 30.0, 192, (0.5, 0.5))
        assert mask.shape == (192, 192) and mask.dtype == bool
        assert 0.2 < mask.mean() < 0.7, pattern


def test_unknown_names_are_refused() -> None:
    instance = sample_instance("cat", np.random.default_rng(0))
    with pytest.raises(ValueError, match="unknown class 'unicorn'"):
        sample_instance("unicorn", np.random.default_rng(0))
    for wrong in (
        replace(instance, class_name="unicorn"),
        replace(instance, pattern="unicorn"),
        replace(instance, accessory="unicorn"),
    ):
        with pytest.raises(ValueError, match="unknown"):
            draw_subject(wrong, 64)
    with pytest.raises(ValueError, match="at least 8"):
        draw_subject(instance, 4)
