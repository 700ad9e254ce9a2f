"""Captions: the prompt and reply format, requests from the taxonomy, and sampling with one random stream a record."""

import json
from pathlib import Path

import pytest
import torch
from tiny_datagen import TAXONOMY, tiny_dataset_config, tiny_models

from datagen import captions
from datagen.captions import (
    Caption,
    CaptionsConfig,
    names_subject,
    parse_reply,
    render_prompt,
    render_reply,
    render_request,
    split_reply,
)
from datagen.captions_transformers import PromptTokenizer, TransformersCaptioner
from datagen.config import derived_seed
from datagen.taxonomy import Request, Taxonomy, load_taxonomy
from shards.files import read_json_lines
from shards.markers import rejects_path
from shards.stage import StageSpec, plan_shard


def test_prompt_and_reply_round_trip() -> None:
    assert render_prompt("teapot", "on a beach", "at night") == (
        "Subject: teapot\nPlace: on a beach\nDetail: at night\nJSON:\n"
    )
    assert "Detail" not in render_prompt("teapot", "on a beach")
    caption = Caption("café table", "table", 'a "quoted" café table on a beach')
    assert parse_reply(render_reply(caption)) == caption
    assert parse_reply(f"Sure!\n{render_reply(caption)}\nAnything else?") == caption


def reply(**fields: object) -> str:
    return json.dumps({"subject": "dog", "class": "dog", "caption": "a dog on a beach", **fields})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty reply"),
        (" \n", "empty reply"),
        ("a dog on a beach", "no JSON object"),
        (reply()[:-5], "broken JSON"),
        ("{" * 100_000, "broken JSON"),
        ('{"a": ' * 5_000, "broken JSON"),
        ("{}", "no subject"),
        (reply(caption=None), "no caption"),
        (reply(caption=["a dog"]), "no caption"),
        (reply(subject="  "), "empty subject"),
        (reply(caption="a dog \x07 on a beach"), "characters that are not text"),
        (reply(caption="a dog \ud800 on a beach"), "characters that are not text"),
        (reply(caption="a dog \u0378 on a beach"), "characters that are not text"),
        (reply(caption="a dog " + "very " * 2_000), "caption too long"),
        (reply(caption="a hotdog on a beach"), "subject not in caption"),
        (reply(subject="?"), "subject not in caption"),
    ],
)
def test_nonsense_is_rejected_under_a_fixed_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        parse_reply(text)


def test_subjects_are_found_as_words() -> None:
    assert names_subject("Two RC-cars race", "rc car") and names_subject("a (dog).", "Dog")
    assert names_subject("un perro en la playa", "perro") and names_subject("собака на пляже", "Собака")
    assert not names_subject("a doghouse", "dog")


def test_requests_follow_the_seed_and_cover_the_taxonomy() -> None:
    taxonomy = Taxonomy.model_validate({**TAXONOMY, "classes": ["dog", {"noun": "rubber duck", "class": "duck"}]})
    requests = [taxonomy.request(seed) for seed in range(200)]
    assert requests == [taxonomy.request(seed) for seed in range(200)]
    assert {(one.subject, one.class_name) for one in requests} == {("dog", "dog"), ("rubber duck", "duck")}
    assert {one.place for one in requests} == set(TAXONOMY["places"])
    assert {one.extra for one in requests} == {None, *TAXONOMY["extras"]}
    assert {taxonomy.request(seed, extra_share=0).extra for seed in range(50)} == {None}
    assert None not in {taxonomy.request(seed, extra_share=1).extra for seed in range(50)}


@pytest.mark.parametrize("content", ["", "[]", '{"classes": []}', '{"classes": ["a"], "places": ["b"], "clases": []}'])
def test_a_broken_taxonomy_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "taxonomy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="taxonomy.json") as error:
        load_taxonomy(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="taxonomy .*none.json does not exist"):
        load_taxonomy(tmp_path / "none.json")


def test_a_reply_does_not_depend_on_its_batch() -> None:
    config = tiny_dataset_config(tiny_models()).captions
    captioner = TransformersCaptioner(config)
    prompts = [render_prompt(noun, place) for noun in TAXONOMY["classes"] for place in ("on a beach", "on a table")]
    prompts[0] = render_prompt("teapot", "on a beach", "at night")  # of another length, so the others are padded
    seeds = [derived_seed(0, number) for number in range(len(prompts))]
    together = captioner.write(prompts, seeds)
    alone = [captioner.write([prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert together == alone
    same = captioner.write([prompts[1]] * 4, [1, 2, 3, 1])
    assert same[0] == same[3] and len(set(same)) > 1
    assert parse_reply(together[1]).subject == "teapot"


def test_tokens_are_drawn_by_temperature_and_top_p() -> None:
    """Of the probabilities at temperature 2 the best that make up 0.8 are left, and drawn in their proportions."""
    config = tiny_dataset_config(tiny_models()).captions.model_copy(update={"temperature": 2.0, "top_p": 0.8})
    captioner, count = TransformersCaptioner(config), 4000
    logits = 2 * torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log()
    noisy = captioner._perturbed(logits.expand(count, -1), [torch.Generator().manual_seed(n) for n in range(count)])
    drawn = noisy.argmax(dim=-1).bincount(minlength=5) / count
    assert torch.allclose(drawn, torch.tensor([0, 0.4, 0, 0.3, 0.15]) / 0.85, atol=0.03)


def test_a_chat_template_gets_the_instruction_and_no_day_of_the_calendar() -> None:
    config = tiny_dataset_config(tiny_models()).captions.model_copy(update={"instruction": "Write."})
    prompts = PromptTokenizer(config)
    prompts.tokenizer.chat_template = (
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert prompts.text("Subject: dog") == "26 Jul 2024<system>Write.<user>Subject: dog<assistant>"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("dog | dog | A dog | on a beach", Caption("dog", "dog", "A dog | on a beach")),
        ("Here you are:\n 2. Dog | dog | a dog on a beach\n", Caption("dog", "dog", "a dog on a beach")),
        ("- dog|animal|a dog", Caption("dog", "animal", "a dog")),
        ("SUBJECT | CLASS | CAPTION\ndog | dog | a dog", Caption("dog", "dog", "a dog")),
        ("| Subject | Class | Caption |\n|---|---|---|\n| dog | dog | a dog |", Caption("dog", "dog", "a dog")),
        ("SUBJECT | CLASS | CAPTION\n", "no line of three parts"),
        ("dog: a dog on a beach", "no line of three parts"),
        ("dog | | a dog", "empty class"),
        ("", "empty reply"),
    ],
)
def test_lines(text: str, found: Caption | str) -> None:
    if isinstance(found, Caption):
        assert parse_reply(text, "lines") == found
    else:
        with pytest.raises(ValueError, match=f"^{found}$"):
            parse_reply(text, "lines")


def test_a_reply_of_several_captions_is_cut_at_each() -> None:
    objects = [reply(caption=f"a dog {number} }}{{") for number in range(3)]
    for text in (f"[{', '.join(objects)}]", "Sure:\n" + "\n\n".join(objects), f'{{"captions"{objects[0]}'):
        pieces = split_reply(text, 3, "json")
        assert len(pieces) == 3 and all(piece in text for piece in pieces)
    assert split_reply(f"[{', '.join(objects)}]", 3, "json") == objects
    assert split_reply(objects[0] + objects[1][:-4], 3, "json")[:2] == [objects[0], objects[1][:-4]]
    assert split_reply("a | b | c\n\nwell\nd | e | f", 2, "lines") == ["a | b | c", "d | e | f"]
    headed = "SUBJECT | CLASS | CAPTION\n|---|:-:|---|\na | b | c\n| d | e | f |\n"
    assert split_reply(headed, 2, "lines") == ["a | b | c", "d | e | f"]
    assert split_reply(" nothing", 1, "json") == [" nothing"]


def test_each_form_of_reply_is_asked_for() -> None:
    dog, teapot = (
        Request(subject="dog", class_name="dog", place="here", extra="now"),
        Request(subject="teapot", class_name="teapot", place="there", extra=None),
    )
    assert render_request([dog], "schema") == render_prompt("dog", "here", "now")
    assert render_request([dog, teapot], "lines") == (
        "1.\nSubject: dog\nPlace: here\nDetail: now\n2.\nSubject: teapot\nPlace: there\nLines:\n"
    )
    config = CaptionsConfig(model="x", taxonomy="y", engine="vllm", instruction="Write. {format} Nothing else.")
    asked = {form: config.model_copy(update={"reply": form}).full_instruction() for form in ("json", "schema", "lines")}
    assert asked["json"] == asked["schema"] and '{"subject": ...' in asked["json"] and "|" in asked["lines"]
    with pytest.raises(ValueError, match='reply "schema" needs engine "vllm"'):
        CaptionsConfig(model="x", taxonomy="y", reply="schema")


class Scripted:
    """A language model that says what it is told to."""

    def __init__(self, replies: list[str]) -> None:
        self.replies = iter(replies)
        self.asked: list[tuple[str, int]] = []

    def write(self, prompts: list[str], seeds: list[int]) -> list[str]:
        self.asked += zip(prompts, seeds, strict=True)
        return [next(self.replies) for _ in prompts]


def test_every_reply_is_kept_or_rejected_with_what_was_written(tmp_path: Path) -> None:
    config = tiny_dataset_config(tiny_models()).captions
    taxonomy = Taxonomy.model_validate({"classes": [{"noun": "dog", "class": "Dog"}], "places": ["on a beach"]})
    cat = reply(subject="cat", caption="a cat on a beach", **{"class": "cat"})
    terrier = reply(subject="terrier", caption="a terrier")  # another word for the class
    replies = [terrier, "", reply()[:-1], cat, reply(subject="small dog", caption="a small dog", **{"class": "pet"})]
    settings = {"seed": 0, "captions_per_shard": len(replies)}
    plan = plan_shard(tmp_path, StageSpec("captions", 1, settings, {"model": "sha256:x"}), 3)
    execution = config.execution.model_dump()
    marker = captions.run(plan, config, taxonomy, Scripted(replies), execution, lambda done, total: None)
    kept = list(read_json_lines(plan.path))
    assert [record["key"] for record in kept] == ["00003-00000", "00003-00004"]
    assert [(record["subject"], record["class"]) for record in kept] == [
        ("terrier", "Dog"), ("small dog", "Dog"),
    ]  # fmt: skip
    rejects = list(read_json_lines(rejects_path(plan.path)))
    assert [record["raw"] for record in rejects] == replies[1:4]
    assert marker.rejected == {"another subject than asked for": 1, "broken JSON": 1, "empty reply": 1}


def test_what_follows_from_the_seed_is_the_same_for_ever(tmp_path: Path) -> None:
    """A dataset is gone on with after an upgrade, so requests and seeds change with the stage's version alone."""
    config = tiny_dataset_config(tiny_models()).captions
    settings = {"seed": 7, "captions_per_shard": 2}
    plan = plan_shard(tmp_path, StageSpec("captions", 1, settings, {"model": "sha256:x"}), 3)
    writer, execution = Scripted(["", ""]), config.execution.model_dump()
    captions.run(plan, config, Taxonomy.model_validate(TAXONOMY), writer, execution, lambda done, total: None)
    rejects = list(read_json_lines(rejects_path(plan.path)))
    assert [record["seed"] for record in rejects] == [703891868546780, 5918189067713264]
    assert writer.asked == [
        ("Subject: robot\nPlace: on a beach\nJSON:\n", 5300299279221275),
        ("Subject: teapot\nPlace: on a beach\nDetail: in the rain\nJSON:\n", 427728379136986),
    ]
