"""The training in a report: its course by epoch, and the report that every training can have."""

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from cggm.display import INK, Line, LineChart
from cggm.reports.balance import balance_section
from cggm.reports.charts import figures
from cggm.reports.page import SIMULATED, Section, write_page
from cggm.reports.provenance import provenance_section
from cggm.reports.run import RunRecord
from cggm.reports.tables import Column, cards, metric_card, sortable_table
from cggm.runs import column, find_metric, validation_charts


def report_training(path: Path) -> Path:
    """Write ``report.html`` of a training with what every training has, whatever its task.

    Args:
        path: The run folder, finished or not.

    Raises:
        UserError: If it is no run folder, a log is damaged or a metric is unknown.
    """
    record = RunRecord.read(path)
    return write_page(
        record.folder.report,
        title=f"Training {record.name}",
        lead=f"{record.method}, {len(record.metrics)} epochs.",
        sections=[
            _results(record),
            balance_section(record.balance),
            training_section(record),
            provenance_section(record),
        ],
        simulated=SIMULATED if record.results.get("simulated") else "",
    )


def _results(record: RunRecord) -> Section:
    split = "test" if "test" in record.results else "validation"
    found: Mapping[str, object] = record.results.get(split, {})
    shown = [
        metric_card(find_metric(name), value)
        for name, value in found.items()
        if isinstance(value, int | float | None)
    ]
    note = f"Metrics of the {split} split."
    return Section("Results", cards(shown, note) if shown else Markup())


def training_section(record: RunRecord) -> Section:
    """Loss and validation metrics over the epochs, as charts and as a table.

    Args:
        record: The run.
    """
    log = record.metrics
    x = column(log, "epoch")
    singles = {"Training loss": "train_loss", "Learning rate": "lr"}
    charts = [
        *validation_charts(log),
        *(
            LineChart(title, [Line(title.lower(), x, column(log, key), INK, dash=0)], "epoch")
            for title, key in singles.items()
        ),
    ]
    columns = [
        Column("epoch", [row["epoch"] for row in record.validated], digits=0),
        *(_metric_column(record, name) for name in record.validation_metrics),
    ]
    table = sortable_table("Validation by epoch", columns, sorted_by=0)
    body = Markup("{}<h3>Numbers</h3>{}").format(figures(charts), table)
    return Section("Training", body if record.metrics else Markup())


def _metric_column(record: RunRecord, name: str) -> Column:
    metric = find_metric(name)
    values = [row.get(f"val_{name}") for row in record.validated]
    return Column(metric.heading, values, metric.digits)
