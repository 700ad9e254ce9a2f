import pytest

from dreamcache.parameters import UNETS, empty_unet, main, trainable_parameters

# Sum of d^2 over the five default layers, of d over them, and d^2 of the encoder's three.
SQUARES, WIDTHS, ENCODER_SQUARES = (
    2 * 1280**2 + 2 * 640**2 + 320**2,
    2 * 1280 + 2 * 640 + 320,
    1280**2 + 640**2 + 320**2,
)


@pytest.mark.parametrize("name", list(UNETS))
def test_counts_are_the_papers(name, capsys):
    unet = empty_unet(name)
    assert unet.device.type == "meta"
    assert trainable_parameters(unet) == (25_207_040, 20_992_000)
    assert trainable_parameters(unet, ["mid_block.attentions.0"]) == (9_835_520, 5 * 1280**2)
    assert trainable_parameters(unet, ("encoder",))[1] == 5 * ENCODER_SQUARES
    assert trainable_parameters(unet, integration="spatial_sum") == (4 * SQUARES + 3 * WIDTHS, 3 * SQUARES)
    assert trainable_parameters(unet, integration="textual_sum") == (2 * SQUARES, 2 * SQUARES)
    # Attention of 4 d^2 and a gated feed-forward part of 12 d^2; biases d, 8 d and d; two norms of 2 d.
    assert trainable_parameters(unet, integration="decoupled_blocks") == (16 * SQUARES + 14 * WIDTHS, 15 * SQUARES)
    # Keys and values of the mid block's 1280 channels at every layer: 2 d^2 become 2 d 1280.
    assert trainable_parameters(unet, single_resolution=True)[1] == 3 * SQUARES + 2 * 1280 * WIDTHS
    assert main([name]) == 0
    printed = capsys.readouterr().out
    assert printed.count("25,207,040   20,992,000    25M") == 2
    assert "8,396,800    8,396,800    19M" in printed
    assert ("19,169,280 on this U-Net" in printed) == (name == "sd15")


def test_wrong_names_end_with_a_usage_line(capsys):
    assert main(["sdxl"]) == main([]) == 2
    assert capsys.readouterr().err.count("usage: python -m dreamcache.parameters sd15|sd21") == 2
