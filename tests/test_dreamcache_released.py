import pickle

import pytest
import torch
from tiny_diffusion import save_tiny_stable_diffusion, tiny_unet

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.released import _NAMES


def released_tensors(adapters: AdapterSet) -> dict[str, torch.Tensor]:
    """Adapters in the authors' layout, as the parity test reads it from their network's names."""
    blocks = dict(
        zip(adapters.layers, ("middle_block.1", *(f"output_blocks.{n}.1" for n in (4, 6, 8, 10))), strict=True)
    )
    theirs = {own: name for name, own in _NAMES.items()}
    return {
        f"diffusion_model.{block}.transformer_blocks.0.{theirs[name]}": tensor
        for layer, block in blocks.items()
        for name, tensor in adapters[layer].state_dict().items()
    }


def test_the_authors_layout_loads(tmp_path):
    unet = tiny_unet()
    adapters = AdapterSet.for_unet(unet, seed=3)
    torch.save(released_tensors(adapters), tmp_path / "cross_attention-1.pt")
    loaded = AdapterSet.from_released(tmp_path / "cross_attention-1.pt", unet)
    assert all(torch.equal(tensor, loaded.tensors()[name]) for name, tensor in adapters.tensors().items())


def test_other_files_are_refused(tmp_path):
    unet, file = tiny_unet(), tmp_path / "cross_attention-1.pt"
    tensors = released_tensors(AdapterSet.for_unet(unet))
    with pytest.raises(FileNotFoundError, match="no released adapters"):
        AdapterSet.from_released(file, unet)
    for content, message in (
        (dict(list(tensors.items())[1:]), "is missing"),
        (tensors | {"diffusion_model.middle_block.1.norm.weight": torch.ones(2)}, "no released adapter's weight"),
        (
            tensors | {"diffusion_model.output_blocks.5.1.transformer_blocks.0.norm2_mem.bias": torch.ones(32)},
            "not known",
        ),
        ({name: tensor[..., :1] for name, tensor in tensors.items()}, "not do|does not hold"),
        ({"state_dict": tensors}, "no flat dict"),
        ([1, 2], "no flat dict"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=message):
            AdapterSet.from_released(file, unet)
    for content in (pickle.dumps(print), b"", b"torn"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="no file of tensors"):
            AdapterSet.from_released(file, unet)


def test_v_prediction_is_refused(tmp_path):
    backbone = load_backbone(save_tiny_stable_diffusion(tmp_path / "v", prediction_type="v_prediction"))
    for unet in (backbone, tiny_unet(latent_size=96)):
        with pytest.raises(ValueError, match="predicts v|noise prediction"):
            AdapterSet.from_released(tmp_path / "none.pt", unet)
