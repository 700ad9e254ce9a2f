"""In which order the blocks of a dataset are begun, deduplicated and finished, whichever worker is first."""

from pathlib import Path

import pytest
from tiny_triplets import write_tiny_triplets

from datagen.block import Block
from datagen.dataset import Dataset
from flows import workers
from flows.profiles import load_profile


def test_blocks_are_deduplicated_in_their_order_and_finished_before_others_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deduplicated: list[range] = []

    def build_stages(block: Block, indices: range, stages: tuple[str, ...]) -> None:
        assert stages == ("dedup",)
        deduplicated.append(indices)

    monkeypatch.setattr(workers, "build_stages", build_stages)
    config = load_profile("miniature", {"shards": 6, "shards_per_block": 2}).dataset
    blocks = workers._Blocks(Dataset(config, tmp_path))

    def begun() -> list[str]:
        return [part.name for part in iter(blocks.next_part, None)]

    def made(name: str) -> list[range]:
        first = int(name.split()[1])
        stages = workers.BEFORE if name.startswith("captions") else workers.AFTER
        return list(blocks.advance(workers._Part(blocks.dataset, range(first, first + 2), stages)))

    assert begun() == ["captions 00000 to 00001", "captions 00002 to 00003", "captions 00004 to 00005"]
    assert made("captions 00004") == made("captions 00002") == [] and deduplicated == [] and begun() == []
    assert made("captions 00000") == [] and deduplicated == [range(0, 2), range(2, 4), range(4, 6)]
    assert begun() == ["images 00000 to 00001", "images 00002 to 00003", "images 00004 to 00005"]
    write_tiny_triplets(tmp_path, shards=6, triplets_a_shard=3)
    assert made("images 00002") == [range(2, 4)] and blocks.so_far() == "1 of 3 blocks finished"
    assert blocks.accepted == {range(2, 4): 6}
