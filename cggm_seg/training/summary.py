"""The first and last words of a BraTS training, and the files that it leaves behind."""

from collections.abc import Sequence

from cggm.balancer import Balancer
from cggm.display import aligned
from cggm.runs import (
    RunFolder,
    Session,
    describe_training,
    find_metric,
    keep_gradients,
    plot_curves,
    write_json,
)
from cggm_seg.data import Cohort, Split
from cggm_seg.evaluation import subset_names
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.reports import keep_validation, write_segmentation_report
from cggm_seg.training.balancing import training_batches
from cggm_seg.training.config import BratsConfig
from cggm_seg.training.validation import (
    COLUMNS,
    evaluate_cached,
    mean_of,
    missed_warnings,
    subset_means,
    unused_class_warnings,
)


def announce_segmentation(
    config: BratsConfig,
    run: RunFolder,
    network: MultiEncoderDeepLabV3Plus,
    cohort: Cohort,
    *,
    done: int = 0,
) -> None:
    """Print what is about to run, and keep the split in ``split.json``.

    Args:
        config: The configuration.
        run: Where the split goes.
        network: The network.
        cohort: Cases of training and validation.
        done: Epochs that a resumed run has behind it.
    """
    data, split = cohort.folder, cohort.split
    lines = {
        "data": f"{data}{_if_simulated(cohort)}: {_cases(split.training)} for training, "
        f"{len(split.validation)} for validation",
        "network": config.network.encoder_name,
    }
    if len(set(split.patients.values())) < len(split.patients):
        lines["patients"] = f"{_patients(split.training, split)} for training, " + (
            f"{_patients(split.validation, split)} for validation, none of them in both"
        )
    if cohort.lacking:
        lines["lacking"] = ", ".join(
            f"{name} in {len(ids)} of {len(cohort.cases)} cases"
            for name, ids in cohort.lacking.items()
        )
    describe_training(lines, config.balancer, network, run, done=done, max_epochs=config.max_epochs)
    for warning in unused_class_warnings(cohort.cache, split.training):
        print(f"warning: {warning}")
    lacking = {"lacking": cohort.lacking} if cohort.lacking else {}
    write_json(run.split, split.to_dict() | lacking)


def conclude_segmentation(
    config: BratsConfig,
    session: Session,
    network: MultiEncoderDeepLabV3Plus,
    balancer: Balancer,
    cohort: Cohort,
) -> None:
    """Evaluate the best checkpoint, plot the curves, write the report and print where all is.

    Writes ``results.json``, and ``subsets.json``: mean Dice of the validation cases for every
    subset of modalities, or for all modalities alone where ``config.subsets`` is off. A case that
    lacks a modality counts in the subsets that do without it.

    Args:
        config: The configuration.
        session: Of the finished run.
        network: The trained network; gets the weights of the best checkpoint.
        balancer: The method; gets its state of that checkpoint.
        cohort: Cases of training and validation.
    """
    run, best = session.folder, session.load_best()
    cache, split, modalities = cohort.cache, cohort.split, network.modalities
    subsets = subset_names(modalities) if config.subsets else [modalities]
    rows = evaluate_cached(network, cache, split.validation, subsets=subsets, progress="Evaluating")
    table = subset_means(rows, cache)
    whole = "+".join(modalities)
    missed = missed_warnings(rows[modalities], cache)
    warnings = unused_class_warnings(cache, split.training) + missed
    result = {
        "epoch": best.epoch,
        "max_epochs": config.max_epochs,
        "simulated": cohort.simulated,
        "validation_score": best.score,
        "validation": {c: mean_of(rows[modalities], c) for c in COLUMNS},
        "subsets": {
            name: {c: row[c] for c in COLUMNS} for name, row in table.items() if name != whole
        },
        "warnings": warnings,
    }
    write_json(run.subsets, table)
    keep_gradients(run, config, network, balancer, training_batches(config, network, cache, split))
    # The run counts as finished once everything is there that follows from its results.
    write_json(run.results, {**result, "finished": False})
    if config.curves:
        plot_curves(run, simulated=cohort.simulated)
    if config.report:
        keep_validation(run, network, cohort, rows[modalities])
        write_segmentation_report(run.path)
    write_json(run.results, {**result, "finished": True})
    _print_table(config, run, cohort, best.epoch, table)
    for warning in missed:
        print(f"\nwarning: {warning}")


def _print_table(
    config: BratsConfig,
    run: RunFolder,
    cohort: Cohort,
    epoch: int,
    table: dict[str, dict[str, float]],
) -> None:
    cases = f"{_cases(cohort.split.validation, 'validation ')}{_if_simulated(cohort)}"
    print(f"\nmean Dice of {cases}, epoch {epoch}")
    if table:  # unless all modalities alone are asked for, and no case has all
        print(_subset_table(table))
    print()
    if config.curves:
        print(f"curves   {run.curves}")
    if config.report:
        print(f"report   {run.report}")
    print(f"run      {run.path}")


def _patients(ids: Sequence[str], split: Split) -> int:
    return len({split.patients[case_id] for case_id in ids})


def _cases(ids: Sequence[str], kind: str = "") -> str:
    return f"{len(ids)} {kind}case{'' if len(ids) == 1 else 's'}"


def _if_simulated(cohort: Cohort) -> str:
    return " (SIMULATED)" if cohort.simulated else ""


def _subset_table(table: dict[str, dict[str, float]]) -> str:
    first = next(iter(table.values()))
    metrics = [find_metric(name) for name in COLUMNS]
    counted = ["cases"] if "cases" in first else []
    rows = [
        [name, *(m.text(row[m.name]) for m in metrics), *(f"{row[c]:.0f}" for c in counted)]
        for name, row in table.items()
    ]
    return "\n".join(aligned([["modalities", *(m.heading for m in metrics), *counted], *rows]))
