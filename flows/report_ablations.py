"""The report's part on ablations: the paper's tables beside ours, one chart of them, and which findings hold."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from flows.ablation_chart import ablation_chart
from flows.ablation_results import finding_text, no_adapters_text, read_results, table_rows


def ablations(run: Path) -> dict[str, Any] | None:
    """The tables, their chart as a data URI and the findings of a run's ablations, or None where there are none."""
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
                "findings": [finding_text(one) for one in found],
            }
        )  # fmt: skip
    # As a picture of its own, since its style would else be the whole page's.
    chart = base64.b64encode(ablation_chart(results["tables"]).encode()).decode()
    return {
        "text": f"{results['text']} {no_adapters_text(results['no_adapters'])}".strip(),
        "chart": f"data:image/svg+xml;base64,{chart}",
        "tables": tables,
    }
