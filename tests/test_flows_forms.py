"""The forms of deployments in Prefect's UI, by the schema that `prefect deploy` stores: every setting, none unasked."""

import json

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows.ablate import ablate_adapters
from flows.build_dataset import build_dataset
from flows.evaluate_adapters import evaluate_adapters
from flows.evaluate_given import evaluate_given
from flows.pipeline import dreamcache_pipeline
from flows.profiles import load_profile, miniature_checkpoints
from flows.settings import setting_names
from flows.train_adapters import train_adapters

SCHEMA = build_dataset.parameters.model_dump_for_openapi()
FIELDS = SCHEMA["properties"]["settings"]["properties"]


def test_all_flows_show_the_same_fields() -> None:
    for one in (ablate_adapters, dreamcache_pipeline, evaluate_adapters, evaluate_given, train_adapters):
        assert one.parameters.properties["settings"]["properties"] == FIELDS


@pytest.mark.parametrize("profile", ["miniature", "full"])
def test_every_setting_of_a_profile_is_a_field(profile: str) -> None:
    names = {name.removeprefix("dataset.") for name in setting_names(load_profile(profile))}
    names = {name.replace("benchmark.subjects", "benchmark").replace("benchmark.images", "benchmark") for name in names}
    assert names - {"name"} == FIELDS.keys()


def test_fields_say_type_meaning_and_both_defaults() -> None:
    assert FIELDS["images.steps"] == {
        "title": "images.steps", "type": "integer", "minimum": 1, "description": "paper S1; miniature 20, full 25"
    }  # fmt: skip
    assert FIELDS["evaluation.seed"]["description"] == "default 0"
    assert FIELDS["captions.model"]["description"].startswith('miniature "checkpoints/llama", full "meta-llama/')
    assert FIELDS["masks.box_engine"]["enum"] == ["transformers", "groundingdino-py"]
    assert str(miniature_checkpoints().parent) not in json.dumps(SCHEMA)
    # A default of the form would be sent along by everyone who leaves the field alone, whatever the profile.
    assert SCHEMA["properties"]["settings"]["default"] == {} and not any(
        "default" in field for field in FIELDS.values()
    )


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, False),
        ({"images.steps": 7, "evaluation.subjects": None, "sweep.image_scales": [0.4, 1]}, False),
        ({"benchmark": "/data/dreambooth", "workers.deployment": "build-block/gpu"}, False),
        ({"benchmark.subjects": 4}, False),
        ({"benchmark": {"subjects": 4, "images": 3}}, False),
        ({"images.steps": "seven"}, True),
        ({"masks.box_engine": "yolo"}, True),
    ],
)
def test_the_server_takes_what_the_command_line_takes(settings: dict[str, object], wrong: bool) -> None:
    assert bool(validate({"profile": "miniature", "settings": settings}, SCHEMA)) is wrong
    if not wrong:
        load_profile("miniature", settings)
