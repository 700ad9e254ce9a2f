import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dreamcache.reference import augment_reference, reference_image, to_tensor


def scene(size: tuple[int, int] = (80, 60)) -> tuple[Image.Image, Image.Image]:
    """A red rectangle of 20 x 30 pixels on black, and its mask."""
    image, mask = Image.new("RGB", size, "black"), Image.new("L", size, 0)
    for picture, colour in ((image, "red"), (mask, 255)):
        ImageDraw.Draw(picture).rectangle((50, 10, 69, 39), fill=colour)
    return image, mask


def subject_box(image: Image.Image) -> tuple[int, int, int, int]:
    box = Image.fromarray((np.asarray(image).min(axis=2) < 128).astype(np.uint8)).getbbox()
    assert box is not None
    return box


def test_the_subject_is_centred_on_white():
    reference = reference_image(*scene(), size=100)
    assert (reference.size, reference.mode) == ((100, 100), "RGB")
    left, top, right, bottom = subject_box(reference)
    assert bottom - top == 85 and abs(right - left - 57) <= 1
    assert abs(left + right - 100) <= 1 and abs(top + bottom - 100) <= 1
    # The black ground must not shine through at the subject's edge.
    pixels = np.asarray(reference)
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[..., 0].min() > 200


def test_a_cut_out_is_the_same_as_image_and_mask():
    image, mask = scene()
    cutout = image.convert("RGBA")
    cutout.putalpha(mask)
    assert reference_image(cutout, size=64) == reference_image(image, mask, 64)
    buffer = io.BytesIO()
    cutout.save(buffer, "PNG")
    assert reference_image(Image.open(buffer), size=64) == reference_image(image, mask, 64)


def test_an_image_on_white_stays_where_it_is():
    image = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 9, 9), fill="blue")
    left, top, right, bottom = subject_box(reference_image(image, size=80))
    assert (left, top, right, bottom) == (0, 10, 10, 20)
    opaque = image.convert("RGBA")
    assert reference_image(opaque, size=80) == reference_image(image, size=80)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "YCbCr"])
def test_other_modes_are_read(mode):
    reference = reference_image(Image.new("RGB", (32, 32), "gray").convert(mode), size=16)
    assert reference.mode == "RGB" and reference.size == (16, 16)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16))
    values = np.asarray(reference_image(ramp, size=16))[..., 0]
    assert values[0, 0] == 0 and values[-1, -1] == 255 and 120 < values[8, 0] < 136
    image, mask = scene()
    soft = mask.point(lambda value: value and 100)  # under the half of what counts as the subject
    with pytest.raises(ValueError, match="mask or alpha channel is empty"):
        reference_image(image, Image.fromarray(np.asarray(soft, dtype=np.uint16) * 257))
    with pytest.raises(ValueError, match="floating-point pixels"):
        reference_image(Image.new("F", (16, 16), 0.5))


def test_one_pixel_is_enough_and_nothing_is_not():
    assert reference_image(Image.new("RGB", (1, 1), "red"), size=16).getpixel((8, 8)) == (255, 0, 0)
    with pytest.raises(ValueError, match="mask or alpha channel is empty"):
        reference_image(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    with pytest.raises(ValueError, match="mask is 4 x 4, its image 8 x 8"):
        reference_image(Image.new("RGB", (8, 8)), Image.new("L", (4, 4), 255))


def test_augmentation_is_seeded_and_keeps_the_subject_large():
    image, mask = scene()
    fills, flips, pictures = [], [], set()
    for seed in range(60):
        augmented = augment_reference(image, mask, 64, np.random.default_rng(seed))
        assert augmented == augment_reference(image, mask, 64, np.random.default_rng(seed))
        assert augmented.size == (64, 64)
        pictures.add(augmented.tobytes())
        left, top, right, bottom = subject_box(augmented)
        fills.append(max(right - left, bottom - top) / 64)
        flips.append(left + right)
    assert len(pictures) > 50
    # Erased rectangles only ever make the visible part smaller.
    assert max(fills) <= 1.0 and np.median(fills) > 0.7
    assert np.std(flips) > 5


def test_augmentation_draws_what_the_paper_says():
    """Three hundred draws of a square, red to the left and blue to the right, against what is documented of them."""
    image, side, many = Image.new("RGB", (20, 20), "red"), 40, 300
    image.paste("blue", (10, 0, 20, 20))
    fills, places, flipped, plain_colours, hues, lost = [], [], [], [], [], []
    for seed in range(many):
        augmented = augment_reference(image, Image.new("L", image.size, 255), side, np.random.default_rng(seed))
        pixels = np.asarray(augmented, dtype=int)
        subject = pixels.min(axis=2) < 128
        left, top, right, bottom = subject_box(augmented)
        edge = max(right - left, bottom - top)
        lost.append(edge**2 - subject.sum())
        if lost[-1] == 0:  # nothing is erased of it
            fills.append(edge / side)
            places += [(left / (side - edge), top / (side - edge))] if edge <= side - 6 else []
        redness = np.where(subject, pixels[..., 0] - pixels[..., 2], 0)
        flipped.append(np.nonzero(redness > 100)[1].mean() > np.nonzero(redness < -100)[1].mean())
        plain_colours.append((pixels == (255, 0, 0)).all(axis=2).any())
        if not plain_colours[-1]:
            hue = np.asarray(augmented.convert("HSV"), dtype=int)[..., 0][redness > 100]
            hues.append(np.median((hue + 128) % 256 - 128))  # of red it is 0
    assert 0.68 < min(fills) < 0.73 and 0.97 < max(fills) <= 1
    for shares in zip(*places, strict=True):
        assert min(shares) < 0.1 and max(shares) > 0.9
    assert 0.4 < np.mean(flipped) < 0.6
    assert 0.85 < np.mean(plain_colours) < 0.95, "colours are jittered with p = 0.1"
    assert 6 < np.abs(hues).max() <= 15, "by up to 0.05 of the 256 hues"
    assert 0.3 < np.mean(np.array(lost) > 0) < 0.42, "erased with p = 0.4, now and then beside the subject"
    assert 0.15 < max(lost) / side**2 < 0.27, "up to a quarter of the image"


def test_mask_and_subject_are_flipped_together():
    image, mask = Image.new("RGB", (40, 40), "black"), Image.new("L", (40, 40), 0)
    for picture, colour in ((image, "red"), (mask, 255)):
        ImageDraw.Draw(picture).polygon(((4, 4), (35, 35), (4, 35)), fill=colour)
    for seed in range(12):
        augmented = np.asarray(augment_reference(image, mask, 64, np.random.default_rng(seed)))
        assert augmented[..., 0].min() > 150, "none of the black ground"


def test_a_photo_s_rotation_is_obeyed():
    image, _ = scene()
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    image.save(content, "PNG", exif=exif)
    assert reference_image(Image.open(content), size=64) == reference_image(image.rotate(-90, expand=True), size=64)


def test_tensors_span_minus_one_to_one():
    tensor = to_tensor(Image.fromarray(np.array([[[0, 128, 255]]], dtype=np.uint8)))
    assert tensor.shape == (3, 1, 1) and tensor.flatten().tolist() == pytest.approx([-1, 0.0039, 1], abs=1e-3)
