"""The report's part on ablations: the paper's tables beside ours, a chart of each, and which findings reproduce."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.ablation_results import finding_text, read_results, table_rows
from flows.charts import Line, line_chart


def ablations(run: Path) -> dict[str, Any] | None:
    """The tables, charts and findings of a run's ablations, or None where there are none."""
    results = read_results(run)
    if results is None or not results["tables"]:
        return None
    tables = []
    for table in results["tables"]:
        rows = table_rows(table)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        found = [one for one in results["findings"] if one["table"] == table["name"]]
        tables.append(
            {
                "title": table["title"], "note": table["note"], "columns": columns,
                "rows": [[row.get(name, "") for name in columns] for row in rows],
                "chart": _chart(table, results["no_adapters"]),
                "findings": [finding_text(one) for one in found],
            }
        )  # fmt: skip
    return {"text": results["text"], "tables": tables}


def _chart(table: Mapping[str, Any], no_adapters: Mapping[str, Any]) -> str:
    """DINO against CLIP-T: a cross of intervals for every line, and for the backbone without adapters."""
    crosses = []
    places = [(line["label"], line["scores"], "none" if line["difference"] else "right") for line in table["lines"]]
    for label, scores, style in [*places, ("no adapters", no_adapters, "soft")]:
        if scores and None not in (scores["dino"]["low"], scores["clip_t"]["low"]):
            up, across = scores["dino"], scores["clip_t"]
            crosses.append(Line("", [(across["mean"], up["low"]), (across["mean"], up["high"])], style))
            crosses.append(Line(label, [(across["low"], up["mean"]), (across["high"], up["mean"])], style))
    return line_chart(crosses, "CLIP-T: like the prompt", "DINO: like the subject")
