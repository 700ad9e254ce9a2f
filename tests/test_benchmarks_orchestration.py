"""The benchmark of orchestration runs, at a size that says nothing about speed."""

from pathlib import Path

import pytest

from benchmarks import orchestration
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
