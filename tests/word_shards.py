"""A stage of words, as small as a stage can be."""

from pathlib import Path

from shards.stage import ShardPlan, StageSpec, plan_shard

WORDS = StageSpec("words", 1, {"letters": 3, "nested": {"a": 1}})


def write_words(run: Path, words: list[str], index: int = 0, spec: StageSpec = WORDS) -> ShardPlan:
    """Write a shard of a word a record; words of less than three letters are rejected."""
    plan = plan_shard(run, spec, index)
    with plan.writing(records_in=len(words)) as out:
        for number, word in enumerate(words):
            record = {"key": f"{index}-{number}", "word": word}
            if len(word) >= 3:
                out.add(record)
            else:
                out.reject(record, "too short", length=len(word))
    return plan
