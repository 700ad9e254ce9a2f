"""Settings of stages: locations as a shell would read them, and values that would fail hours later told at once."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_datagen import tiny_dataset_config, tiny_models

from datagen.images import DiffusersPainter, ImagesConfig
from datagen.licences import model_terms
from datagen.masks import MasksConfig


def test_a_model_in_the_home_folder_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sd").symlink_to(tiny_models() / "stable-diffusion")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = tiny_dataset_config(tiny_models()).images.model_dump()
    config = ImagesConfig.model_validate({**settings, "model": "~/sd"})
    assert DiffusersPainter(config).paint(["a dog"], [1]).shape[0] == 1


@pytest.mark.parametrize("query", ["{noun} {x}.", "{noun", "{noun}}", "a thing."])
def test_a_query_has_the_noun_and_nothing_else_to_fill_in(query: str) -> None:
    MasksConfig(box_model="none", mask_model="none", query="a photo of {noun}.")
    with pytest.raises(ValidationError, match="query"):
        MasksConfig(box_model="none", mask_model="none", query=query)


def test_sizes_are_multiples_of_what_a_decoder_makes() -> None:
    with pytest.raises(ValidationError, match="multiple of 8"):
        ImagesConfig(model="none", size=500)


def test_a_card_that_is_not_utf8_says_its_terms_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes("---\nlicense: mit\n---\nModèle".encode("latin-1"))
    assert model_terms(str(tmp_path)) == "mit"
