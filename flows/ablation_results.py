"""What a study of ablations has found: a row a training, the paper's tables beside ours, and which findings hold."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamcache.ablations import FINDINGS, TABLES
from dreamcache.dreambooth.findings import Difference, judge, over_seeds, paired
from dreamcache.dreambooth.scoring import ROWS
from dreamcache.dreambooth.summary import Row, estimates
from dreamcache.held_out import is_trained_on
from flows.ablation_chart import SHOWN, ablation_chart
from flows.ablations import DEFAULT, FOLDER, AblationRow, Study
from flows.evaluation_plans import TRAINED, adapters_folder
from flows.lock import locked
from flows.plans import training_step
from flows.report_training import held_out_losses
from flows.score_tables import METRIC_NAMES, aligned, estimate_cells
from shards.files import json_line, read_json_lines, replace_file
from shards.triplets import TripletShards, triplet_paths

ROWS_FILE, TABLES_FILE, TEXT_FILE, CHART_FILE = "rows.jsonl", "tables.json", "ablations.md", "ablations.svg"
TEXT = (
    "In brackets: 95% intervals, bootstrapped over subjects, those of one palette together. Differences are paired, "
    "the same prompts and seeds, against the default of their table, over the seeds of the training that both have. A "
    "finding is shown where its interval excludes 0, of six subjects or more, and every such seed agrees; with one "
    "seed the intervals know nothing of the training's own chance, and one comparison in fifteen is shown by chance "
    "alone. The paper's scores are of its own models, data and benchmark: what compares are orders and distances."
)


def write_results(study: Study) -> Path:
    """Write what the rows that are up to date say, as records, tables and a chart; returns the path of the text."""
    with locked(study.folder, wait=True):
        return _write(study)


def _write(study: Study) -> Path:
    rows = study.finished()
    scores: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        scores.setdefault(row.variant, {})[row.repeat] = _scored(row, "adapters")

    @functools.cache
    def difference(first: str, second: str) -> Difference:
        return {} if first == second else paired(scores.get(first, {}), scores.get(second, {}))

    tables = []
    for kind, table in TABLES.items():
        lines, baseline = [], study.variants[table.baseline.name]
        for line in table.lines:
            variant = study.variants[line.name]
            trained = list(scores.get(variant, {}).values())
            lines.append(
                {
                    "name": line.name, "label": line.label, "row": variant, "seeds": len(trained),
                    "scores": estimates(over_seeds(trained)) if trained else {},
                    "difference": difference(variant, baseline),
                    "paper": {"clip_i": line.clip_i, "clip_t": line.clip_t},
                }
            )  # fmt: skip
        if any(line["difference"] for line in lines):
            named = {"name": kind, "title": table.title, "note": table.note, "baseline": table.baseline.name}
            tables.append({**named, "lines": lines})
    of_lines = {
        pair: difference(*(study.variants[name] for name in pair)) for finding in FINDINGS for pair in finding.pairs
    }
    judged = [one for finding in FINDINGS for one in judge(finding, of_lines) if one["comparisons"]]
    content = {"text": TEXT, "tables": tables, "findings": judged, "no_adapters": _no_adapters(study)}
    records = b"".join(json_line(_record(study, row, scores)) for row in rows)
    replace_file(study.folder / ROWS_FILE, records)
    replace_file(study.folder / TABLES_FILE, json.dumps(content, indent=1).encode() + b"\n")
    replace_file(study.folder / CHART_FILE, ablation_chart(tables).encode())
    replace_file(study.folder / TEXT_FILE, _text(content).encode())
    return study.folder / TEXT_FILE


def read_results(run: Path) -> dict[str, Any] | None:
    """The tables and findings that were written into a run folder, or None where there are none."""
    path = run / FOLDER / TABLES_FILE
    if not path.is_file():
        return None
    content = dict(json.loads(path.read_bytes()))
    for table in content["tables"]:
        table.setdefault("baseline", TABLES[table["name"]].baseline.name)  # older files do not say it
    return content


def table_rows(table: Mapping[str, Any]) -> list[dict[str, str]]:
    """One of the tables as texts by column: our scores, the differences from its default, and the paper's scores."""
    rows = []
    for line in table["lines"]:
        row = {"": line["label"], "seeds": str(line["seeds"] or "")} | _cells(line["scores"])
        row |= {f"{name}, difference": cell for name, cell in _cells(line["difference"], signed=True).items()}
        paper = {METRIC_NAMES[metric]: value for metric, value in line["paper"].items() if value is not None}
        rows.append(row | {f"{name} in the paper": f"{value:.3f}" for name, value in paper.items()})
    return rows


def finding_text(found: Mapping[str, Any]) -> str:
    """What was found of one finding, with the differences that say so, as one sentence."""
    differences = "; ".join(
        f"{one['first']} - {one['second']} {_cells({found['metric']: one}, True)[METRIC_NAMES[found['metric']]]}"
        + (f" ({len(one['by_seed'])} seeds)" if len(one["by_seed"]) > 1 else "")
        for one in found["comparisons"]
    )
    return f"{found['finding']} ({METRIC_NAMES[found['metric']]}): {found['verdict']}. {differences}."


def no_adapters_text(scores: Mapping[str, Any]) -> str:
    """The scores of the backbone alone as one sentence; empty where there are none."""
    cells = ", ".join(f"{name} {cell}" for name, cell in _cells(scores).items())
    return f"Without adapters: {cells}." if scores else ""


def _text(content: Mapping[str, Any]) -> str:
    """All tables and findings as Markdown."""
    parts = ["# Ablations", content["text"]]
    if content["no_adapters"]:
        parts.append(no_adapters_text(content["no_adapters"]))
    for table in content["tables"]:
        rows = list(aligned(table_rows(table), " | "))
        header, *lines = (f"| {line:{max(map(len, rows))}} |" for line in rows)
        rule = "".join("|" if c == "|" else "-" for c in header)
        found = [f"- {finding_text(one)}" for one in content["findings"] if one["table"] == table["name"]]
        parts += [f"## {table['title']}", table["note"], "\n".join([header, rule, *lines]), "\n".join(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _record(study: Study, row: AblationRow, scores: Mapping[str, Mapping[int, list[Row]]]) -> dict[str, Any]:
    """All that is known of one finished training and its evaluation, as JSON values."""
    marker, baseline = training_step(row.profile, row.folder).marker(), study.baseline(row.variant)
    assert marker is not None
    others = scores.get(baseline, {}) if baseline != row.variant else {}
    found = paired({row.repeat: scores[row.variant][row.repeat]}, others)
    return {
        "row": row.name, "variant": row.variant, "seed": row.profile.training.seed, "settings": row.settings,
        "trained_in": row.trained_in.name, "steps": row.profile.training.steps, "triplets": _triplets(row),
        "parameters": json.loads((adapters_folder(row.folder) / "config.json").read_bytes())["parameters"],
        "held_out_loss": held_out_losses(row.folder), "seconds": marker["execution"]["seconds"],
        "scores": estimates(scores[row.variant][row.repeat]), "against": baseline, "difference": found or None,
    }  # fmt: skip


def _triplets(row: AblationRow) -> int:
    shards, config = TripletShards(triplet_paths(row.folder)), row.profile.training
    keys = (key for shard in range(len(shards.counts)) for key in shards.keys(shard))
    return sum(is_trained_on(key, config.held_out, config.share) for key in keys)


def _scored(row: AblationRow, variant: str) -> list[Row]:
    return [one for one in read_json_lines(row.folder / TRAINED / ROWS) if one["variant"] == variant]


def _no_adapters(study: Study) -> dict[str, Any]:
    row = study.row(DEFAULT, 0)
    return {} if row.remaining() else estimates(_scored(row, "no-adapters"))


def _cells(estimated: Mapping[str, Any], signed: bool = False) -> dict[str, str]:
    return estimate_cells({metric: estimated[metric] for metric in SHOWN if metric in estimated}, signed)
