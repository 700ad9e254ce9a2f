"""Dedup: what repeats, which share a class may take, growth, and agreement with exact Jaccard."""

import random
from pathlib import Path
from typing import Any

import pytest

from datagen import dedup
from datagen.caption_index import CaptionIndex
from datagen.dedup import DedupConfig, normalized_words
from datagen.sketches import shingles, sketch
from shards.files import read_json_lines
from shards.markers import rejects_path
from shards.stage import StageSpec, plan_shard

CAPTIONS = StageSpec("captions", 1, {})
FREE = DedupConfig(max_class_share=1, max_class_and_place_share=1)


def write_captions(run: Path, index: int, texts: list[tuple[str, str, str]]) -> Path:
    plan = plan_shard(run, CAPTIONS, index)
    with plan.writing(records_in=len(texts)) as out:
        for number, (kind, place, text) in enumerate(texts):
            out.add({"key": f"{index:05d}-{number}", "class": kind, "place": place, "caption": text})
    return plan.path


def keep(run: Path, config: DedupConfig, shards: int, count: int, index: CaptionIndex | None = None) -> list[list[Any]]:
    """Dedup all shards of a run; the kept keys of each, then the rejects of all."""
    index = index or CaptionIndex(config)
    spec = StageSpec("dedup", 1, config.content())
    kept, rejects = [], []
    for number in range(index.next_shard, shards):
        plan = plan_shard(run, spec, number, [CAPTIONS.path(run, number)])
        dedup.run(plan, config, index, count * (number + 1))
        kept.append([record["key"] for record in read_json_lines(plan.path)])
        rejects += read_json_lines(rejects_path(plan.path))
    return [*kept, rejects]


def test_duplicates_name_what_they_repeat(tmp_path: Path) -> None:
    first = "a lovely old teapot stands on a wooden table in the soft light of a quiet morning"
    write_captions(tmp_path, 0, [("teapot", "table", first), ("dog", "beach", "a dog runs on a beach")])
    write_captions(tmp_path, 1, [
        ("dog", "beach", "A dog, runs ON a beach!"),
        ("teapot", "table", first.replace("quiet", "calm")),
        ("teapot", "table", "a teapot floats in space"),
    ])  # fmt: skip
    kept_0, kept_1, rejects = keep(tmp_path, FREE, 2, 3)
    assert (kept_0, kept_1) == (["00000-0", "00000-1"], ["00001-2"])
    assert [(one["reason"], one["matched"]["key"]) for one in rejects] == [
        ("exact duplicate", "00000-1"), ("near duplicate", "00000-0"),
    ]  # fmt: skip
    assert rejects[1]["matched"]["caption"] == first and 0.8 <= rejects[1]["matched"]["similarity"] < 1


def test_no_class_takes_more_than_its_share(tmp_path: Path) -> None:
    words = [f"thing{number}" for number in range(40)]
    dogs = [("dog", f"place {n % 4}", f"the {words[2 * n]} dog with a {words[2 * n + 1]}") for n in range(20)]
    write_captions(tmp_path, 0, dogs[:10])
    write_captions(tmp_path, 1, dogs[10:])
    config = DedupConfig(max_class_share=0.5, max_class_and_place_share=0.15)
    *kept, rejects = keep(tmp_path, config, 2, 10)
    assert [len(keys) for keys in kept] == [5, 5]
    assert "class cap" in {one["reason"] for one in rejects}
    config = DedupConfig(max_class_share=1, max_class_and_place_share=0.1)
    *kept, rejects = keep(tmp_path, config, 2, 10)
    assert [len(keys) for keys in kept] == [4, 4]  # one a place, then two
    assert {one["reason"] for one in rejects} == {"class and place cap"}
    plan = plan_shard(tmp_path, StageSpec("dedup", 2, {}), 1, [CAPTIONS.path(tmp_path, 1)])
    assert dedup.run(plan, config, CaptionIndex(config), 20).records_out == 4  # by what an earlier process kept
    config = DedupConfig(max_class_share=0.15, max_class_and_place_share=1)
    *kept, _ = keep(tmp_path, config, 2, 10)
    assert [len(keys) for keys in kept] == [2, 1]  # a share of 1.5 is rounded up


def test_unfit_captions_go_before_they_count_for_anything(tmp_path: Path) -> None:
    texts = ["a dog", "a dog " + "so " * 70, "a dog with two hot-irons", "a dog, hot as irony", "a dog, hot as irony"]
    write_captions(tmp_path, 0, [("dog", "beach", text) for text in texts])
    config = FREE.model_copy(update={"blocked_words": ("Hot Iron", "c.3.p.o")})
    kept, rejects = keep(tmp_path, config, 1, 5)
    assert kept == ["00000-3"]
    assert [(one["reason"], one.get("words"), one.get("word")) for one in rejects] == [
        ("too few words", 2, None), ("too many words", 72, None), ("blocked word", None, "hot irons"),
        ("exact duplicate", None, None),
    ]  # fmt: skip


def test_captions_at_the_limits_of_length_and_likeness(tmp_path: Path) -> None:
    longest = " ".join(f"word{number}" for number in range(60))
    write_captions(tmp_path, 0, [("dog", "beach", text) for text in ("a b c", "a b d", longest, f"{longest} more")])
    config = FREE.model_copy(update={"near_duplicate": 3 / 7, "rows": 1})  # a, b and "a b" of seven
    kept, rejects = keep(tmp_path, config, 1, 4)
    assert kept == ["00000-0", "00000-2"]
    assert [one["reason"] for one in rejects] == ["near duplicate", "too many words"]


def test_growth_changes_nothing_that_is_there(tmp_path: Path) -> None:
    rng = random.Random(0)
    nouns, places = ["dog", "cat", "robot"], ["beach", "forest"]
    for shard in range(4):
        texts = [(n := rng.choice(nouns), p := rng.choice(places), f"a {rng.choice('abcdefgh')} {n} in a {p}")
                 for _ in range(20)]  # fmt: skip
        write_captions(tmp_path / "grown", shard, texts)
        write_captions(tmp_path / "whole", shard, texts)
    config = DedupConfig(max_class_share=0.3, max_class_and_place_share=0.2)
    *whole, _ = keep(tmp_path / "whole", config, 4, 20)
    *first, _ = keep(tmp_path / "grown", config, 2, 20)
    fresh = CaptionIndex(config)  # another process, later: it reads what the earlier shards kept
    spec = StageSpec("dedup", 1, config.content())
    grown = list(first)
    for number in (2, 3):
        plan = plan_shard(tmp_path / "grown", spec, number, [CAPTIONS.path(tmp_path / "grown", number)])
        dedup.run(plan, config, fresh, 20 * (number + 1))
        grown.append([record["key"] for record in read_json_lines(plan.path)])
    assert grown == whole and sum(map(len, whole)) > 10


def repeating_captions() -> list[tuple[str, str, str]]:
    """Captions of 20 words with repeats that differ from them by one to six words."""
    rng = random.Random(1)
    vocabulary = [f"word{number}" for number in range(300)]
    texts: list[str] = []
    for _ in range(150):
        words = rng.choices(vocabulary, k=20)
        texts.append(" ".join(words))
        for changes in (1, 2, 6):
            changed = list(words)
            for _ in range(changes):
                changed[rng.randrange(20)] = rng.choice(vocabulary)
            texts.append(" ".join(changed))
    return [("x", "y", text) for text in texts]


def test_near_duplicates_agree_with_exact_jaccard(tmp_path: Path) -> None:
    """All at or above the threshold are found but for the few that no band of hashes brings together."""
    captions = repeating_captions()
    write_captions(tmp_path, 0, captions)
    taken, rejects = keep(tmp_path, FREE, 1, len(captions))
    rejected = {one["key"]: one["matched"] for one in rejects}
    kept: dict[str, set[str]] = {}
    found = missed = 0
    for number, (_, _, text) in enumerate(captions):
        key, own = f"00000-{number}", shingles(normalized_words(text))
        exact = {name: len(own & other) / len(own | other) for name, other in kept.items()}
        best = max(exact.values(), default=0.0)
        if key in rejected:
            assert best >= FREE.near_duplicate and rejected[key]["similarity"] == round(best, 4)
            assert exact[rejected[key]["key"]] == best
        else:
            kept[key] = own
        found += key in rejected
        missed += key not in rejected and best >= FREE.near_duplicate
    assert list(kept) == taken and found > 100 and missed <= 0.02 * found


def test_what_is_kept_does_not_depend_on_how_many_are_worked_on_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = repeating_captions()[:200]
    captions += [("x", "y", "the same words over and over again")] * 50
    made = []
    for chunk in (512, 7):
        monkeypatch.setattr(dedup, "CHUNK", chunk)
        write_captions(tmp_path / str(chunk), 0, captions)
        made.append(keep(tmp_path / str(chunk), FREE, 1, len(captions)))
    assert made[0] == made[1] and made[0][1][-1]["matched"]["key"] == "00000-200"


def test_a_sketch_is_of_the_normalized_words_whatever_the_script() -> None:
    texts = [
        "A dog, a DOG, a dog!", "", " \t?!", "Straße İstanbul ﬁne ①½", "它在海滩上 茶壶 它在海滩上",
        "на пляже_2 \u0301a", "x" * 10_000,
        "two\nlines\r\nand\x0bmore", "\ud800 lone \x00 zero", "💡 | <b> %s \u202e", "w " * 3000, "नमस्ते दुनिया",
    ]  # fmt: skip
    found = sketch(texts, bands=4, rows=3)
    words = [normalized_words(text) for text in texts]
    assert [text.split() for text in found.texts] == words
    assert found.words.tolist() == [len(one) for one in words]
    assert found.shingles.sizes.tolist() == [len(shingles(one)) for one in words]
    alone = [sketch([text], bands=4, rows=3).buckets[0].tolist() for text in texts]
    # Other buckets would keep other captions, which is for a new version of the stage alone.
    buckets = sketch(["a dog on a beach", "x"], bands=2, rows=3).buckets
    assert buckets.tolist() == [[957083652, 1977001419], [736397218, 2145710013]]
    assert found.buckets.tolist() == alone and len({tuple(one) for one in alone}) == len(texts) - 1  # two have no word
