"""The benchmark of orchestration at a size that says nothing about speed, and the arithmetic of a large dataset."""

from pathlib import Path

import pytest

from benchmarks import large_dataset, orchestration
from datagen.dataset import STAGES, Dataset
from flows.profiles import load_profile


def test_engines_are_cheap_and_the_rest_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in orchestration.ENGINES:
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after this test
    settings = orchestration.settings_of(tmp_path, shards=2, records=4)
    orchestration.build_by_stages(tmp_path / "run", settings)
    dataset = Dataset(load_profile("miniature", settings).dataset, tmp_path / "run")
    assert dataset.remaining() == []
    assert {stage: sum(dataset.records_out(stage, range(2))) for stage in STAGES} == dict.fromkeys(STAGES, 8)


def test_a_large_dataset_is_reckoned_from_what_is_known() -> None:
    unknown = "\n".join(large_dataset.report(1_000_000, 8, 0.5, {}))
    assert "/ 0.5 accepted = 2,000,000\n" in unknown and "/ 512 = 3,907; blocks: / 16 = 245\n" in unknown
    assert "490 block runs, 2 a block, and 23,442 task runs" in unknown
    assert unknown.count("not measured (--") == 5
    known = "\n".join(large_dataset.report(1_000_000, 8, 0.5, {"shard_seconds": 7.2, "index_bytes": 500.0}))
    assert "7.2 s a shard x 3,907 / 8 = 0.98 h" in known and "500 bytes a caption x 2,000,000 = 1.00 GB" in known
    assert known.count("not measured (--") == 3
    with pytest.raises(ValueError, match="accepted above 0"):
        next(large_dataset.report(1, 1, 0, {}))
