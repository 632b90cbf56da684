"""All trainings that one command asks for: every fold with every seed."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import torch

from cggm.runs import Repeat, RunFolder, RunOptions, choose_device, run_repeats
from cggm_cls.data import TaskData
from cggm_cls.training.assembly import SequenceTraining
from cggm_cls.training.config import SequenceConfig


def run_experiment(
    config: SequenceConfig,
    options: RunOptions,
    load: Callable[[int], TaskData],
    *,
    name: str,
    folds: Sequence[int] = (1,),
) -> None:
    """Run the trainings that are not finished, and print their mean where there are several.

    Args:
        config: What they have in common; seeds count from ``config.seed``.
        options: Where to run, or what to resume.
        load: From a fold to its data.
        name: Of the data set, for the run folder.
        folds: Folds to train on; data without folds has one.

    Raises:
        UserError: If data, method or checkpoint does not fit.
    """
    if options.resume:
        group = RunFolder.open(options.resume)
    else:
        group = RunFolder.plan(options.output, name=name)
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    load = lru_cache(maxsize=1)(load)

    def assemble(one: SequenceConfig, run: RunFolder) -> SequenceTraining:
        data = load(getattr(one, "fold", 1))
        if one.modalities is not None:
            data = data.only(one.modalities)
        return SequenceTraining(one, run, data, device)

    run_repeats(group, config, _repeats(config, folds), assemble)


def _repeats(config: SequenceConfig, folds: Sequence[int]) -> list[Repeat[SequenceConfig]]:
    seeds = range(config.seed, config.seed + config.seeds)
    return [_repeat(config, fold, seed) for fold in folds for seed in seeds]


def _repeat(config: SequenceConfig, fold: int, seed: int) -> Repeat[SequenceConfig]:
    values: dict[str, Any] = {"seed": seed, "seeds": 1}
    parts = [f"seed-{seed}"]
    if any(field.name == "fold" for field in fields(config)):
        values["fold"] = fold
        parts.insert(0, f"fold-{fold}")
    return Repeat("-".join(parts), replace(config, **values))
