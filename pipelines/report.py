"""Write report.html of a training run, a comparison or an evaluation: one file, no network.

python pipelines/report.py runs/brats-20260101-120000
python pipelines/report.py comparison
python pipelines/report.py evaluation.json
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cggm.runs import parse_options, run


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html of a run, a comparison or an evaluation.

    Args:
        run: Run folder, folder of a comparison, or JSON file of brats_evaluate.py; may stand alone.
    """

    run: Path = field(metadata={"metavar": "RUN"})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    named = ["--run", *argv] if argv and not argv[0].startswith("-") else argv
    options = parse_options(ReportOptions, __doc__, named)
    for path in write_reports(options.run):
        print(f"report   {path}")


def write_reports(path: Path) -> list[Path]:
    """Reports of whatever lies at a path: one, or one for each run of a group.

    Args:
        path: A run, a group of runs, a comparison or an evaluation.

    Raises:
        UserError: If it is none of them.
    """
    from cggm.runs import RunFolder

    if path.is_file():
        from cggm_seg.reports import report_evaluation

        return [report_evaluation(path)]
    if (path / "comparison.json").exists():
        return [_compared(path)]
    RunFolder.open(path)
    parts = sorted(file.parent for file in path.glob("*/config.yaml"))
    return [_trained(part) for part in parts or [path]]


def _trained(path: Path) -> Path:
    if (path / "split.json").exists():
        from cggm_seg.reports import write_segmentation_report as write_report
    else:
        from cggm_cls.reports import write_sequence_report as write_report
    return write_report(path)


def _compared(path: Path) -> Path:
    from cggm.comparison import SWEEP, Store, write_report

    store = Store(path)
    records = [record for record in store.records() if record.method not in SWEEP]
    return write_report(path, records, store.refused())


if __name__ == "__main__":
    raise SystemExit(run(main))
