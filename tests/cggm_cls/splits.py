"""Small simulated splits for tests of training and evaluation."""

import numpy as np
import torch

from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData, content_digest
from cggm_cls.data.simulated import SimulatedModality, simulate_sequences

MODALITIES = {
    "text": SimulatedModality(width=6, steps=(1, 5), information=1.0, strength=2.0),
    "audio": SimulatedModality(width=3, steps=(2, 7), information=0.7, strength=1.0),
    "vision": SimulatedModality(width=4, steps=(1, 3), information=0.0, strength=1.0),
}


def task_data(classes=3, sizes=(48, 20, 24), seed=0):
    """Simulated data; ``classes=None`` for regression."""
    train, valid, test = (_split(classes, size, k, seed) for k, size in enumerate(sizes))
    digest = content_digest({"train": train, "valid": valid, "test": test})
    return TaskData(train, valid, test, classes, digest, simulated=True)


def _split(classes, size, number, seed):
    rng = np.random.default_rng([seed, number])
    if classes is None:
        target = rng.uniform(-3, 3, size).astype(np.float32)
    else:
        target = rng.integers(classes, size=size)
    arrays = simulate_sequences(MODALITIES, target, seed=seed, split=number)
    inputs = {
        name: RaggedSequences.from_list([torch.from_numpy(a) for a in rows])
        for name, rows in arrays.items()
    }
    return SequenceDataset(
        inputs, torch.from_numpy(target), [f"{number}-{k}" for k in range(size)], seed=seed
    )
