"""What a training on sequences says before it starts and leaves behind when it ends."""

from collections.abc import Mapping
from itertools import combinations, islice
from typing import Any

from cggm.balancer import Balancer
from cggm.late_fusion import LateFusion
from cggm.runs import (
    RunFolder,
    describe_training,
    direction_vectors,
    load_network_weights,
    plot_curves,
    write_json,
    write_vectors,
)
from cggm_cls.data import TaskData
from cggm_cls.networks import MultimodalTransformer
from cggm_cls.reports import write_predictions, write_sequence_report
from cggm_cls.training.batches import epoch_batches
from cggm_cls.training.config import SequenceConfig
from cggm_cls.training.evaluation import evaluate, evaluate_heads, predict


def describe(
    config: SequenceConfig,
    run: RunFolder,
    network: MultimodalTransformer,
    data: TaskData,
    *,
    done: int = 0,
) -> None:
    """Print what is about to run.

    Args:
        config: The configuration.
        run: Where it writes to.
        network: The network.
        data: The splits.
        done: Epochs that a resumed run has behind it.
    """
    target = "regression" if data.classes is None else f"{data.classes} classes"
    widths = ", ".join(f"{name} {width}" for name, width in data.widths.items())
    lines = {
        "data": f"{len(data.train)} samples for training, {len(data.valid)} for validation, "
        f"{len(data.test)} for the test, {target}{_if_simulated(data)}",
        "network": f"transformer on {widths}",
    }
    describe_training(lines, config.balancer, network, run, done=done, max_epochs=config.max_epochs)
    for note in data.notes:
        print(f"note     {note}", flush=True)


def finish(
    config: SequenceConfig,
    run: RunFolder,
    network: MultimodalTransformer,
    balancer: Balancer,
    data: TaskData,
) -> None:
    """Evaluate the best checkpoint on the test split, plot the curves and print the metrics.

    Writes ``results.json`` and, with the curves, ``predictions.npz`` and ``report.html``.

    Args:
        config: The configuration.
        run: The finished run.
        network: A network like the trained one; gets the weights of the best checkpoint.
        balancer: The method; its heads, if any, are evaluated as they were in that checkpoint.
        data: The splits.
    """
    best = load_network_weights(run.checkpoints, network, {"balancer": balancer})
    own = network.output_layer
    heads = own if isinstance(own, LateFusion) else balancer.heads
    names = network.modalities
    subsets = [s for k in range(1, len(names)) for s in combinations(names, k)]

    def metrics(present: tuple[str, ...] | None = None) -> dict[str, Any]:
        return evaluate(
            network, data.test, data.classes, batch_size=config.batch_size, present=present
        )

    test = metrics()
    rows = {"+".join(s): metrics(s) for s in subsets} if config.subsets else {}
    result = {
        "epoch": best.epoch,
        "max_epochs": config.max_epochs,
        "simulated": data.simulated,
        "classes": data.names,
        "validation_score": best.score,
        "test": test,
        "subsets": rows,
        "heads": {}
        if heads is None
        else evaluate_heads(network, heads, data.test, batch_size=config.batch_size),
    }
    if config.gradients and balancer.heads is not None:
        batches = islice(epoch_batches(config, network, data), config.gradients)
        vectors = direction_vectors(network, balancer.heads, batches, balancer.task_loss)
        write_vectors(run.gradients, vectors)
    if config.curves:
        plot_curves(run)
    write_json(run.results, result)
    if config.curves:
        prediction = predict(network, data.test, batch_size=config.batch_size)
        write_predictions(run, prediction.numpy(), data.test.target.numpy())
        write_sequence_report(run.path)
    print(f"\ntest split{_if_simulated(data)}, epoch {best.epoch}, selected on validation")
    print("\n".join(f"{name:<14}{_shown(test[name])}" for name in numbers(test)))
    if rows:
        print(f"\nthe same, for subsets of modalities\n{_table(rows, data.classes)}")
    if config.curves:
        print(f"\ncurves   {run.curves}")
        print(f"report   {run.report}")


def numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics without those that are more than a number, such as a confusion matrix."""
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def _if_simulated(data: TaskData) -> str:
    return " (SIMULATED)" if data.simulated else ""


def _table(rows: Mapping[str, Mapping[str, Any]], classes: int | None) -> str:
    columns = ("mae", "corr") if classes is None else ("acc", "uar")
    width = max(map(len, rows)) + 2
    lines = [f"{'':<{width}}" + "".join(f"{column:>8}" for column in columns)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(_shown(row[column]) for column in columns))
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.3f}"
