"""Write report.html of a training run, a comparison or an evaluation: one file, no network.

python pipelines/report.py runs/brats-20260101-120000
python pipelines/report.py comparison
python pipelines/report.py evaluation.json
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cggm.runs import parse_options, run

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html of a run, a comparison or an evaluation.

    Args:
        run: Run folder, folder of a comparison, or JSON file of brats_evaluate.py; may stand alone.
        tasks: Table of tasks, in which a task of your own may stand; see configs/tasks.yaml.
    """

    run: Path = field(metadata={"metavar": "RUN"})
    tasks: Path = field(default=ROOT / "configs" / "tasks.yaml", metadata={"metavar": "YAML"})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    named = ["--run", *argv] if argv and not argv[0].startswith("-") else argv
    options = parse_options(ReportOptions, __doc__, named)
    for path in write_reports(options.run, options.tasks):
        print(f"report   {path}")


def write_reports(path: Path, tasks: Path) -> list[Path]:
    """Reports of whatever lies at a path: one, or one for each run of a group.

    Args:
        path: A run, a group of runs, a comparison or an evaluation.
        tasks: Table of tasks.

    Raises:
        UserError: If it is none of them, or of an unknown task.
    """
    from cggm.comparison import report_folder
    from cggm.reports import find_task, load_tasks, report_training
    from cggm.runs import RunFolder, SessionOptions

    if path.is_file():
        from cggm_seg.reports import report_evaluation

        return [report_evaluation(path)]
    table = load_tasks(tasks)
    if (path / "comparison.json").exists():
        return [report_folder(path, table)]
    written = []
    for member in RunFolder.open(path).members():
        task = member.task()
        # A session of somebody's own has no line in the table, and what every training has.
        own = None if task == SessionOptions.task else find_task(task, table).load_report()
        written.append((own or report_training)(member.path))
    return written


if __name__ == "__main__":
    raise SystemExit(run(main))
