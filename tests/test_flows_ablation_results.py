"""What a study says of rows whose images were all rejected."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_dreamcache_dreambooth_metrics import make_rows

from flows import ablation_results
from flows.ablations import DEFAULT, AblationRow, Study
from flows.profiles import load_profile
from shards.files import json_line


def test_a_default_without_scored_images_is_told_and_compares_with_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(load_profile("miniature"), tmp_path)
    rows = [study.row(DEFAULT, 0), study.row("mid", 0)]
    for row, variant in zip(rows, ("no-adapters", "adapters"), strict=True):
        for folder in ("evaluation", "training/adapters"):
            (row.folder / folder).mkdir(parents=True)
        lines = [json_line(one) for one in make_rows(variant, 0.3)]
        (row.folder / "evaluation" / "rows.jsonl").write_bytes(b"".join(lines))
        (row.folder / "training" / "adapters" / "config.json").write_text('{"parameters": 1}')
    step = SimpleNamespace(marker=lambda: {"execution": {"seconds": 1.0}})
    monkeypatch.setattr(ablation_results, "training_step", lambda profile, run: step)
    monkeypatch.setattr(ablation_results, "held_out_losses", lambda run: None)
    monkeypatch.setattr(ablation_results, "_triplets", lambda row: 8)
    monkeypatch.setattr(AblationRow, "remaining", lambda row: [])
    monkeypatch.setattr(study, "finished", lambda: rows)

    text = ablation_results.write_results(study)
    default, mid = map(json.loads, text.with_name("rows.jsonl").read_text().splitlines())
    assert default["scores"] == {} and default["difference"] is None
    assert mid["scores"]["dino"]["mean"] == pytest.approx(0.45) and mid["difference"] is None
    assert "Without adapters: DINO 0.450" in text.read_text()
