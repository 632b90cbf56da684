"""Pages whose figures come from files: what stands between their marks, and rows of their tables.

    python -m benchmarks.pages [--take COMPARISON ...]

Writes docs/ anew from benchmarks/results/. ``--take`` first takes over what a comparison
(``pipelines/compare.py --output COMPARISON``) has finished: one with ``--protocol missing`` into
compare_missing.jsonl, another into compare_TASK.jsonl, in place of all rows of the same tasks.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import result_tables as tables
from benchmarks import verdicts
from benchmarks.known import proof
from benchmarks.known.dense import LEVEL
from cggm.comparison import RecordStore
from cggm.comparison.missing import missing_table
from cggm.comparison.records import FinishedRun, methods, of_task, read_records, seeds
from cggm.comparison.tables import heads_table, performance_table
from cggm.display import to_markdown
from cggm_cls import metrics  # noqa: F401  (registers accuracy)

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("results.md", "guided.md", "which_method.md", "benchmarks.md")
END = "<!-- end -->"
MFEAT = "compare_mfeat.jsonl"
MISSING = "compare_missing.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--take", nargs="+", type=Path, default=[], metavar="COMPARISON")
    for folder in parser.parse_args().take:
        print(f"{folder}: {take(folder, RESULTS)}")
    texts, rows = blocks(), table_rows()
    for name in PAGES:
        page = (DOCS / name).read_text()
        (DOCS / name).write_text(with_rows(with_blocks(page, texts), rows))


def take(comparison: Path, results: Path) -> Path:
    """Take over the finished trainings of a comparison; returns the file that has them now."""
    new = RecordStore(comparison).records()
    told = json.loads((comparison / "comparison.json").read_text())["arguments"]
    tasks = list(dict.fromkeys(run.task for run in new))
    file = results / (MISSING if "missing" in told else f"compare_{tasks[0]}.jsonl")
    kept = [run for run in read_records(file) if run.task not in tasks] if file.exists() else []
    lines = [json.dumps(asdict(run)) for run in (*kept, *new)]
    file.write_text("\n".join(lines) + "\n")
    return file


def read_rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / name).read_text())["rows"]
    return rows


def blocks() -> dict[str, str]:
    """What stands between the marks of each name."""
    mfeat, missing = read_records(RESULTS / MFEAT), read_records(RESULTS / MISSING)
    brats = of_task(missing, "brats")
    classes = [run for run in missing if not run.simulated]
    sequences = [run for run in missing if run.simulated and run.task != "brats"]
    known, dense = read_rows("known_answer.json"), read_rows("dense.json")
    guided, three = read_rows("guided.json"), read_rows("guided_three.json")
    level = tables.dense_gains(dense, LEVEL)
    return {
        "mfeat command": command(mfeat, "--task mfeat --max_epochs 8"),
        "mfeat": to_markdown(performance_table(mfeat, "mfeat", ["acc"])).strip(),
        "mfeat heads": to_markdown(heads_table(mfeat, "mfeat", "acc")).strip(),
        "mfeat missing": to_markdown(missing_table(mfeat, "mfeat", "acc")).strip(),
        "mfeat verdict": verdicts.complete_verdict(mfeat),
        "missing": tables.lacking_at_test_table(classes),
        "missing verdict": verdicts.missing_verdict(classes, "acc", "mrd_uniform", 100, 1),
        "sequences command": command(
            sequences, "--task mosi,iemocap --protocol missing --quick --max_epochs 15"
        ),
        "sequences": tables.lacking_at_test_table(sequences),
        "brats command": command(brats, "--task brats --protocol missing --data COHORT"),
        "brats": tables.brats_table(brats),
        "brats verdict": verdicts.missing_verdict(brats, "dice_mean", "mrd", 1, 3),
        "known": tables.known_tables(known),
        "ranks": tables.rank_table(known),
        "known verdict": verdicts.known_verdict(known),
        "known controls": tables.controls_tables(read_rows("known_controls.json")),
        "guided": proof.table(guided),
        "guided verdict": proof.verdict(guided),
        "guided three": proof.table(three),
        "dense": tables.dense_table(dense),
        "dense verdict": verdicts.dense_verdict(dense),
        "dense level": tables.gains_table(level, LEVEL),
        "lesions": tables.lesion_table(read_rows("lesions.json")),
        "lacking": tables.lacking_table(read_rows("lacking.json")),
        "cost": tables.cost_table(json.loads((RESULTS / "methods.json").read_text())),
        "nnunet": tables.nnunet_table(json.loads((RESULTS / "nnunet.json").read_text())),
    }


def table_rows() -> list[str]:
    """Rows of docs/which_method.md that one comparison decides."""
    missing = read_records(RESULTS / MISSING)
    return [
        verdicts.complete_row(read_records(RESULTS / MFEAT)),
        verdicts.subsets_row([run for run in missing if not run.simulated]),
        verdicts.brats_row(of_task(missing, "brats")),
    ]


def command(records: Sequence[FinishedRun], options: str) -> str:
    """What trains these, as a block of a page."""
    names = dict.fromkeys(
        "unimodal" if name.startswith("unimodal_") and name != "unimodal_losses" else name
        for name in methods(records)
    )
    told = f"{options} --seeds {seeds(records)} --output comparison --methods"
    return f"```sh\npython pipelines/compare.py {told} \\\n{','.join(names)}\n```"


def with_blocks(page: str, texts: dict[str, str]) -> str:
    """A page whose marked parts are these."""
    for name, text in texts.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        if mark:
            page = f"{before}{mark}{text}\n{END}{rest.partition(END)[2]}"
    return page


def with_rows(page: str, rows: Sequence[str]) -> str:
    """A page whose table rows of the same first cell are these."""
    first: Callable[[str], str] = lambda line: line.split(" | ")[0]  # noqa: E731
    new = {first(row): row for row in rows}
    return "\n".join(new.get(first(line), line) for line in page.split("\n"))


if __name__ == "__main__":
    main()
