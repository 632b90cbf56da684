"""What a BraTS training says before it starts and leaves behind when it ends."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cggm.balancer import Balancer
from cggm.runs import (
    RunFolder,
    describe_training,
    direction_vectors,
    load_network_weights,
    plot_curves,
    write_json,
    write_vectors,
)
from cggm_seg.data import SliceCache, Split
from cggm_seg.evaluation import subset_names
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.reports import keep_validation, write_segmentation_report
from cggm_seg.training.balancing import training_batches
from cggm_seg.training.config import BratsConfig
from cggm_seg.training.validation import COLUMNS, evaluate_cached, mean_of


def describe(
    config: BratsConfig,
    run: RunFolder,
    network: MultiEncoderDeepLabV3Plus,
    split: Split,
    data: Path,
    *,
    done: int = 0,
) -> None:
    """Print what is about to run, and keep the split in ``split.json``.

    Args:
        config: The configuration.
        run: Where the split goes.
        network: The network.
        split: Cases of training and validation.
        data: Folder of the cases.
        done: Epochs that a resumed run has behind it.
    """
    lines = {
        "data": f"{data}{_if_simulated(data)}: {_cases(split.training)} for training, "
        f"{len(split.validation)} for validation",
        "network": config.network.encoder_name,
    }
    if len(set(split.patients.values())) < len(split.patients):
        lines["patients"] = f"{_patients(split.training, split)} for training, " + (
            f"{_patients(split.validation, split)} for validation, none of them in both"
        )
    describe_training(lines, config.balancer, network, run, done=done, max_epochs=config.max_epochs)
    write_json(run.split, split.to_dict())


def finish(
    config: BratsConfig,
    run: RunFolder,
    network: MultiEncoderDeepLabV3Plus,
    balancer: Balancer,
    cache: SliceCache,
    split: Split,
    data: Path,
) -> None:
    """Evaluate the best checkpoint, plot the curves, write the report and print where all is.

    Writes ``results.json``, and ``subsets.json``: mean Dice of the validation cases for every
    subset of modalities, or for all modalities alone where ``config.subsets`` is off.

    Args:
        config: The configuration.
        run: The finished run.
        network: A network like the trained one; gets the weights of the best checkpoint.
        balancer: The method; gets its state of that checkpoint.
        cache: Where slices are read.
        split: Cases of training and validation.
        data: Folder of the cases.
    """
    best = load_network_weights(run.checkpoints, network, {"balancer": balancer})
    subsets = subset_names(network.modalities) if config.subsets else [network.modalities]
    results = evaluate_cached(
        network, cache, split.validation, subsets=subsets, progress="Evaluating"
    )
    table = {"+".join(s): {c: mean_of(r, c) for c in COLUMNS} for s, r in results.items()}
    write_json(run.subsets, table)
    whole = "+".join(network.modalities)
    result = {
        "epoch": best.epoch,
        "max_epochs": config.max_epochs,
        "simulated": _is_simulated(data),
        "validation_score": best.score,
        "validation": table[whole],
        "subsets": {name: row for name, row in table.items() if name != whole},
    }
    write_json(run.results, result)
    if config.gradients and balancer.heads is not None:
        batches = islice(training_batches(config, network, cache, split), config.gradients)
        vectors = direction_vectors(network, balancer.heads, batches, balancer.task_loss)
        write_vectors(run.gradients, vectors)
    if config.curves:
        plot_curves(run)
        keep_validation(run, network, data, results[network.modalities])
        write_segmentation_report(run.path)
    cases = f"{_cases(split.validation, 'validation ')}{_if_simulated(data)}"
    print(f"\nmean Dice of {cases}, epoch {best.epoch}")
    print(_aligned(table))
    if config.curves:
        print(f"\ncurves   {run.curves}")
        print(f"report   {run.report}")
    print(f"run      {run.path}")


def _patients(ids: Sequence[str], split: Split) -> int:
    return len({split.patients[case_id] for case_id in ids})


def _cases(ids: Sequence[str], kind: str = "") -> str:
    return f"{len(ids)} {kind}case{'' if len(ids) == 1 else 's'}"


def _is_simulated(data: Path) -> bool:
    return (data / "cohort.json").is_file()


def _if_simulated(data: Path) -> str:
    return " (SIMULATED)" if _is_simulated(data) else ""


def _aligned(table: dict[str, dict[str, float]]) -> str:
    width = max(len("modalities"), *(len(name) for name in table))
    heads = [column.removeprefix("dice_") for column in next(iter(table.values()))]
    lines = [f"{'modalities':<{width}}" + "".join(f"{head:>8}" for head in heads)]
    for name, row in table.items():
        lines.append(f"{name:<{width}}" + "".join(f"{value:8.3f}" for value in row.values()))
    return "\n".join(lines)
