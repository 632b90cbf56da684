"""The first and last words of a training on sequences, and the files that it leaves behind."""

from collections.abc import Mapping
from typing import Any

from cggm.balancer import Balancer
from cggm.display import aligned
from cggm.late_fusion import LateFusion
from cggm.runs import (
    RunFolder,
    Session,
    describe_training,
    find_metric,
    keep_gradients,
    plot_curves,
    write_json,
)
from cggm.tensors import subsets_of
from cggm_cls.data import TaskData
from cggm_cls.metrics import by_importance
from cggm_cls.networks import SequenceNetwork
from cggm_cls.reports import write_predictions, write_sequence_report
from cggm_cls.training.batches import epoch_batches
from cggm_cls.training.config import SequenceConfig
from cggm_cls.training.evaluation import evaluate, evaluate_heads, predict


def announce_sequences(
    config: SequenceConfig,
    run: RunFolder,
    network: SequenceNetwork,
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
        "network": f"{config.network.kind} on {widths}",
    }
    describe_training(lines, config.balancer, network, run, done=done, max_epochs=config.max_epochs)
    for note in data.notes:
        print(f"note     {note}", flush=True)


def conclude_sequences(
    config: SequenceConfig,
    session: Session,
    network: SequenceNetwork,
    balancer: Balancer,
    data: TaskData,
) -> None:
    """Evaluate the best checkpoint on the test split, plot the curves and print the metrics.

    Writes ``results.json`` and, with the report, ``predictions.npz``.

    Args:
        config: The configuration.
        session: Of the finished run.
        network: The trained network; gets the weights of the best checkpoint.
        balancer: The method; its heads, if any, are evaluated as they were in that checkpoint.
        data: The splits.
    """
    run, best = session.folder, session.load_best()
    result = {
        "epoch": best.epoch,
        "max_epochs": config.max_epochs,
        "simulated": data.simulated,
        "classes": data.names,
        "inputs": {name: _input(data, name) for name in data.widths},
        "validation_score": best.score,
        "test_samples": len(data.test),
        **_test_metrics(config, network, balancer, data),
    }
    keep_gradients(run, config, network, balancer, epoch_batches(config, network, data))
    if config.curves:
        plot_curves(run, simulated=data.simulated)
    # The run counts as finished once everything is there that follows from its results.
    write_json(run.results, {**result, "finished": False})
    if config.report:
        prediction = predict(network, data.test, batch_size=config.batch_size)
        write_predictions(run, prediction.numpy(), data.test.target.numpy())
        write_sequence_report(run.path)
    write_json(run.results, {**result, "finished": True})
    _print_results(config, run, data, result)


def _test_metrics(
    config: SequenceConfig, network: SequenceNetwork, balancer: Balancer, data: TaskData
) -> dict[str, Any]:
    """Of the network, of each subset of its modalities, and of each head."""
    own, size = network.output_layer, config.batch_size
    heads = own if isinstance(own, LateFusion) else balancer.heads
    *parts, whole = subsets_of(network.modalities)

    def metrics(present: tuple[str, ...]) -> dict[str, Any]:
        return evaluate(network, data.test, data.measure, batch_size=size, present=present)

    return {
        "test": metrics(whole),
        "subsets": {"+".join(part): metrics(part) for part in parts} if config.subsets else {},
        "heads": {}
        if heads is None
        else evaluate_heads(network, heads, data.test, data.measure, batch_size=size),
    }


def _print_results(
    config: SequenceConfig, run: RunFolder, data: TaskData, result: Mapping[str, Any]
) -> None:
    test, rows = result["test"], result["subsets"]
    print(f"\ntest split{_if_simulated(data)}, epoch {result['epoch']}, selected on validation")
    records = [find_metric(name) for name in numbers(test)]
    print("\n".join(aligned([[m.heading, m.text(test[m.name])] for m in records])))
    if rows:
        print(f"\nthe same, for subsets of modalities\n{_table(rows)}")
    print()
    if config.curves:
        print(f"curves   {run.curves}")
    if config.report:
        print(f"report   {run.report}")


def numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics without those that are more than a number, such as a confusion matrix."""
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def _input(data: TaskData, name: str) -> dict[str, Any]:
    """What the network takes of a modality, for its export."""
    own = data.scaling.get(name)
    scaled = {"mean": own.mean.tolist(), "deviation": own.deviation.tolist()} if own else {}
    return {"features": data.widths[name], **scaled}


def _if_simulated(data: TaskData) -> str:
    return " (SIMULATED)" if data.simulated else ""


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    first = numbers(next(iter(rows.values())))
    shown = [find_metric(name) for name in by_importance(first)[:2]]
    lines = [[name, *(m.text(row[m.name]) for m in shown)] for name, row in rows.items()]
    return "\n".join(aligned([["modalities", *(m.heading for m in shown)], *lines]))
