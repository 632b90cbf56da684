"""The same training several times, under other seeds or on other folds, and its mean result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from cggm.display import aligned
from cggm.distributed import is_first_rank
from cggm.runs.config import write_config
from cggm.runs.folder import RunFolder
from cggm.runs.loop import Stopped
from cggm.runs.metrics import find_metric
from cggm.runs.options import BalancerConfig, RunConfig, describe_method
from cggm.runs.storage import hold, read_json, write_json

_PAGES = {"CGGM": "docs/method.md", "GuidedHeads": "docs/guided.md"}


def describe_training(
    lines: Mapping[str, str],
    balancer: BalancerConfig,
    network: nn.Module,
    run: RunFolder,
    *,
    done: int,
    max_epochs: int,
) -> None:
    """Print what is about to run, a line each for data, network, method and output.

    Args:
        lines: What the task has to say, by a word of at most eight letters.
        balancer: The method.
        network: A network with ``encoders``.
        run: Where it writes to.
        done: Epochs that a resumed run has behind it.
        max_epochs: Epochs of the whole run.
    """
    encoders = network.encoders
    assert isinstance(encoders, nn.ModuleDict)
    method = describe_method(balancer.name, balancer.settings)
    page = _PAGES.get(method.partition("(")[0], "docs/methods.md")
    lines = {
        **lines,
        "network": f"{lines['network']}, {_millions(network)} parameters",
        "method": f"{method} on {_millions(encoders)} parameters of {len(encoders)} encoders "
        f"({', '.join(encoders)})",
        "page": f"{page}; docs/which_method.md says which method serves which case",
        "output": str(run.path),
    }
    if done:
        lines["resumed"] = f"after epoch {done} of {max_epochs}"
    print("\n".join(f"{word:<9}{text}" for word, text in lines.items()), flush=True)


def _millions(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e6:.3f} M"


C = TypeVar("C", bound=RunConfig)


class Training(Protocol):
    """A training that is assembled and has written nothing yet."""

    def run(self) -> None:
        """Train, and leave ``results.json`` in the run's folder."""


@dataclass(frozen=True)
class Repeat(Generic[C]):
    """One of several trainings.

    Args:
        name: Of its folder within the group's.
        config: Its configuration.
    """

    name: str
    config: C


def run_repeats(
    group: RunFolder,
    config: C,
    repeats: Sequence[Repeat[C]],
    assemble: Callable[[C, RunFolder], Training],
) -> None:
    """Run the trainings that are not finished, one after another; resume one that was interrupted.

    A single training uses the group's folder as its own. Several leave ``summary.json`` there, mean
    and standard deviation of every test metric, or validation metric without a test split, and
    print it.

    Args:
        group: Folder of all of them.
        config: The configuration that they have in common.
        repeats: The trainings.
        assemble: From a configuration and a run folder to a training, which goes on where that run
            is. What does not fit is refused here, before anything is written.

    Raises:
        UserError: Whatever ``assemble`` refuses.
    """
    alone = len(repeats) == 1
    if is_first_rank() and group.path.exists():
        hold(group.path, "a training")
        group.sweep()
    folders = {r.name: group if alone else RunFolder(group.path / r.name) for r in repeats}
    for number, repeat in enumerate(repeats, 1):
        folder = folders[repeat.name]
        if is_finished(folder, repeat.config):
            continue
        training = assemble(repeat.config, folder)
        if not alone:  # a single one writes its own, once its folder is complete
            if is_first_rank():
                group.path.mkdir(parents=True, exist_ok=True)
                hold(group.path, "a training")
                write_config(config, group.config)
            print(f"\nrun {number} of {len(repeats)}: {repeat.name}", flush=True)
        try:
            training.run()
        except Stopped as stop:
            raise Stopped(stop.number, stop.what, group.path) from None
    if not is_first_rank():
        return
    if alone:
        print(f"results  {group.results}")
    else:
        _summarize(group, folders)


def is_finished(folder: RunFolder, config: RunConfig) -> bool:
    """Whether a run has its results and was not asked for more epochs since."""
    if not folder.results.exists():
        return False
    results = read_json(folder.results)
    # Early versions wrote no "finished", and their results last but for the report.
    finished = results.get("finished", True) and results.get("max_epochs", 0) >= config.max_epochs
    return bool(finished)


def _summarize(group: RunFolder, folders: Mapping[str, RunFolder]) -> None:
    results = {name: read_json(f.results) for name, f in folders.items()}
    # Folds of a cross-validation have no split but the one that each holds out.
    split = "test" if all("test" in result for result in results.values()) else "validation"
    columns = _columns([result[split] for result in results.values()])
    summary: dict[str, Any] = {
        "runs": list(results),
        "simulated": any(result["simulated"] for result in results.values()),
        split: {name: _statistics(values) for name, values in columns.items()},
    }
    write_json(group.summary, summary)
    simulated = " (SIMULATED)" if summary["simulated"] else ""
    print(f"\n{split} split{simulated}, {len(results)} runs")
    print("\n".join(aligned(_lines(summary[split]))))
    print(f"\nsummary  {group.summary}")


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Values of each metric that is a number, ``None`` where a run has none."""
    names = [n for n in rows[0] if any(isinstance(row[n], int | float) for row in rows)]
    return {name: [row[name] for row in rows] for name in names}


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation of the sample, over the runs that have a value."""
    known = [value for value in values if value is not None]
    sd = stdev(known) if len(known) > 1 else None
    return {"mean": fmean(known), "sd": sd, "values": list(values)}


def _lines(statistics: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells of the table of all metrics."""
    lines = [["metric", "mean", "sd"]]
    for name, row in statistics.items():
        metric = find_metric(name)
        lines.append([metric.heading, metric.text(row["mean"]), metric.text(row["sd"])])
    return lines
