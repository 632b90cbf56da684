"""How many steps a modality alone takes to be learnt."""

import argparse
import itertools
import statistics
from multiprocessing.pool import Pool
from typing import Any

import torch
from torch import nn

from benchmarks.known.data import NAMES, SCENARIOS, SLOW_SCALES, make_data, task_loss
from benchmarks.known.networks import Head, make_encoder
from benchmarks.known.training import Case, batches, make_optimizer, score

LEVELS = {"classification": 60.0, "regression": -66.0, "segmentation": 65.0}


def measure_speed(pool: Pool, options: argparse.Namespace) -> list[dict[str, Any]]:
    """How many times the steps of A training on B alone takes in scenario a."""
    settings = itertools.product(options.tasks, options.optimizers)
    jobs = [job for job in settings if job in SLOW_SCALES]
    seeds = range(3)
    steps = {
        name: pool.starmap(steps_alone, [(*job, name, seed) for job in jobs for seed in seeds])
        for name in NAMES
    }
    rows = []
    for index, (task, optimizer) in enumerate(jobs):
        part = slice(index * len(seeds), (index + 1) * len(seeds))
        middle = {name: statistics.median(steps[name][part]) for name in NAMES}
        rows.append({"task": task, "optimizer": optimizer, "steps": middle})
        ratio, base = middle["B"] / middle["A"], middle["A"]
        print(f"{task}, {optimizer}: alone to {LEVELS[task]:.0f}, "
              f"B takes {ratio:.1f} times the steps of A ({base:.0f})")  # fmt: skip
    return rows


def steps_alone(task: str, optimizer: str, name: str, seed: int) -> int:
    """Optimizer steps until one modality alone reaches the task's level on test data."""
    torch.set_num_threads(1)
    case = Case(task, "a", optimizer, seed)
    data = make_data(task, SCENARIOS["a"], SLOW_SCALES[task, optimizer], seed)
    torch.manual_seed(seed)
    network = nn.Sequential(make_encoder(task), Head(task))
    stepper, loss = make_optimizer(case, network.parameters()), task_loss(task)
    inputs, target = data["test"]
    steps = 0
    for epoch in range(1, 101):
        for batch, wanted in batches(data["train"], case, epoch):
            stepper.zero_grad()
            loss(network(batch[name]), wanted).backward()
            stepper.step()
            steps += 1
            with torch.no_grad():
                if steps % 4 == 0 and score(case, network(inputs[name]), target) >= LEVELS[task]:
                    return steps
    return steps
