import pytest

from dreamcache.parameters import UNETS, empty_unet, main, trainable_parameters


@pytest.mark.parametrize("name", list(UNETS))
def test_counts_are_the_papers(name, capsys):
    unet = empty_unet(name)
    assert unet.device.type == "meta"
    assert trainable_parameters(unet) == (25_207_040, 20_992_000)
    assert trainable_parameters(unet, ["mid_block.attentions.0"]) == (9_835_520, 5 * 1280**2)
    assert main([name]) == 0
    assert "25,207,040   20,992,000    25M" in capsys.readouterr().out


def test_wrong_names_end_with_a_usage_line(capsys):
    assert main(["sdxl"]) == main([]) == 2
    assert capsys.readouterr().err.count("usage: python -m dreamcache.parameters sd15|sd21") == 2
