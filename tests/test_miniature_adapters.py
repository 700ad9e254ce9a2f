import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_dreamcache_adapters import moved_adapters
from tiny_diffusion import save_tiny_stable_diffusion

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from flows.profiles import load_profile
from miniature.adapters import publish

LOG = """step,loss,lr,validation_right,validation_wrong,validation_none
1,0.3,0.1,0.4,0.5,0.6
2,0.2,0.1,0.1,0.2,0.3
3,0.2,0.1,,,
"""


def test_published_adapters_are_the_trained_ones_in_half_precision(tmp_path: Path) -> None:
    save_tiny_stable_diffusion(tmp_path / "sd")
    backbone = load_backbone(tmp_path / "sd")
    trained = moved_adapters(backbone.unet)
    run = tmp_path / "run"
    trained.save_pretrained(run / "training" / "adapters")
    profile = load_profile("miniature", {"shards": 2, "images_per_caption": 3})
    (run / "config.json").write_text(json.dumps(profile.model_dump(mode="json")))
    trained_by = profile.training.model_copy(update={"learning_rate": 0.125}).content()
    (run / "training" / "done.json").write_text(json.dumps({"recipe": {"settings": trained_by}}))
    (run / "triplets").mkdir()
    for shard, count in enumerate((3, 4)):
        (run / "triplets" / f"{shard:05d}.done.json").write_text(json.dumps({"records_out": count}))
    (run / "training" / "log.csv").write_text(
        "step,loss,lr,validation_right,validation_wrong,validation_none\n1,0.3,0.1,,,\n"
    )
    with pytest.raises(FileNotFoundError, match="no held-out losses yet"):
        publish(run, tmp_path / "checkpoints")
    (run / "training" / "log.csv").write_text(LOG)
    folder = publish(run, tmp_path / "checkpoints")
    stored = load_file(folder / "adapters.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    read = AdapterSet.from_pretrained(folder, backbone)
    for mine, theirs in zip(read.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, theirs.half().float())
    card = (folder / "README.md").read_text()
    said = ("7 triplets", "2 shards", "images of each: 3", "dtype float32", "rate 0.125")
    losses = ("right reference 0.10000", "wrong reference 0.20000", "no reference 0.30000")
    assert all(words in card for words in (*said, *losses))
