"""Differences to joint training in the benchmark with a known answer, as Markdown.

python benchmarks/known_table.py benchmarks/results/known_answer.json
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from known_data import SCENARIOS, TASKS

SHORT = {"classification": "class.", "regression": "regr.", "segmentation": "segm."}


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text())["rows"]
    print(tables(rows))


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """One table for each optimizer: methods by scenario and task."""
    found = {(r["optimizer"], r["scenario"], r["task"], r["method"]): r for r in rows}
    optimizers = dict.fromkeys(key[0] for key in found)
    return "\n\n".join(table(optimizer, found) for optimizer in optimizers)


def table(optimizer: str, found: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    columns = [
        (scenario, task)
        for scenario in SCENARIOS
        for task in TASKS
        if (optimizer, scenario, task, "joint") in found
    ]
    methods = dict.fromkeys(key[3] for key in found if key[0] == optimizer)
    heads = [f"({scenario}) {SHORT[task]}" for scenario, task in columns]
    lines = [
        f"| {' | '.join([{'sgd': 'SGD', 'adam': 'Adam'}[optimizer], *heads])} |",
        f"|{'---|' * (len(heads) + 1)}",
    ]
    for method in methods:
        cells = [cell(found.get((optimizer, *column, method)), column[0]) for column in columns]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return "\n".join(lines)


def cell(row: Mapping[str, Any] | None, scenario: str) -> str:
    """Joint training's own score, or a difference to it, in bold where it is not zero."""
    if row is None:
        return "-"
    judged = f"without {SCENARIOS[scenario].absent}" if SCENARIOS[scenario].absent else "score"
    if row["method"] == "joint":
        return f"{row[judged]:.1f}"
    mean, half = row[f"{judged} - joint"]
    text = f"{mean:+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(mean) > half else text


if __name__ == "__main__":
    main()
