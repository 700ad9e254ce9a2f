"""Profiles and the settings laid over them: what is accepted, and what the one line says where it is not."""

from pathlib import Path

import pytest

from datagen.dedup import BlockedWords, normalized_words
from datagen.taxonomy import load_taxonomy
from flows.profiles import changed_settings, load_profile, miniature_checkpoints
from flows.settings import parse_settings, setting_text


def test_a_setting_reaches_its_stage_and_no_other() -> None:
    plain, changed = load_profile("miniature"), load_profile("miniature", {"images.guidance_scale": 5.0})
    assert changed.dataset.images.guidance_scale == 5.0
    assert plain.dataset.images.guidance_scale == 3.5
    assert changed.model_copy(update={"dataset": plain.dataset}) == plain


def test_settings_of_the_dataset_go_by_either_name() -> None:
    short, long = {"captions_per_shard": 7}, {"dataset.captions_per_shard": 7}
    assert load_profile("miniature", short) == load_profile("miniature", long)


def test_full_profile_has_the_papers_sizes() -> None:
    full = load_profile("full")
    assert full.dataset.target_triplets == 400_000
    assert (full.training.steps, full.training.batch_size, full.training.learning_rate) == (25_000, 128, 1e-5)
    assert full.evaluation.sampling.image_guidance_scale == 0.4


def test_full_profiles_taxonomy_fits_its_filters() -> None:
    """Enough classes and pairs for 400,000 captions under the caps, and none that the word list would turn down."""
    dataset = load_profile("full").dataset
    taxonomy = load_taxonomy(Path(dataset.captions.taxonomy))
    assert len(taxonomy.classes) * dataset.dedup.max_class_share > 2
    assert len(taxonomy.classes) * len(taxonomy.places) * dataset.dedup.max_class_and_place_share > 2
    blocked = BlockedWords(dataset.dedup.blocked_words)
    texts = [one.noun for one in taxonomy.classes] + [*taxonomy.places, *taxonomy.extras]
    assert [text for text in texts if blocked.find(normalized_words(text))] == []
    assert blocked.find(normalized_words("A teapot beside two NUDES, in oil"))
    assert not blocked.find(normalized_words("a gunmetal teapot in Middlesex"))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("minature", {}, "there is no profile minature; did you mean miniature?"),
        ("other", {}, "there is no profile other; there are miniature, full"),
        ("miniature", {"images.guidence_scale": 1}, "did you mean images.guidance_scale?"),
        ("miniature", {"guidance_scale": 1}, "did you mean images.guidance_scale?"),
        ("miniature", {"images": 1}, "images: input should be a valid dictionary"),
        ("miniature", {"images.steps": "x"}, "images.steps: input should be a valid integer"),
        ("miniature", {"training.batch_size": 0}, "training.batch_size: input should be greater than or equal to 1"),
        (
            "miniature",
            {"evaluation.variants": ["ip-adapter"], "evaluation.sampling.guidance_scale": 1.0},
            "the variant ip-adapter needs sampling.guidance_scale above 1, not 1: raise it",
        ),
        ("miniature", {"benchmark.subjects.number": 1}, "there is no setting benchmark.subjects.number"),
    ],
)
def test_wrong_names_and_values_are_one_line(name: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_profile(name, settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_json_where_they_parse_as_such() -> None:
    texts = ["a.b=5.0", "c=null", "d=runs/x", 'e="5"', "f=[1, 2]", "g=a=b"]
    assert parse_settings(texts) == {"a.b": 5.0, "c": None, "d": "runs/x", "e": "5", "f": [1, 2], "g": "a=b"}
    with pytest.raises(ValueError, match="not of the form name=value"):
        parse_settings(["images.steps"])
    values = {"a.b": 5.0, "c": None, "d": "runs/x", "e": "30", "f": [1, 2], "g": "null", "h": "[", "i": '"quoted"'}
    texts = [setting_text(name, value) for name, value in values.items()]
    assert parse_settings(texts) == values and texts[2:4] == ["d=runs/x", 'e="30"']


def test_changed_settings_make_the_profile_again() -> None:
    settings = {"images.guidance_scale": 5.0, "evaluation.sampling.steps": 3, "benchmark": "a/folder", "shards": None}
    settings["target_triplets"] = 9
    profile = load_profile("miniature", settings)
    assert changed_settings(profile) == settings
    assert changed_settings(load_profile("miniature")) == {}


def test_checkpoints_are_found_beside_the_miniature() -> None:
    assert (miniature_checkpoints() / "taxonomy.json").is_file()
