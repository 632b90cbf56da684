"""Simulated folder of arrays, for the demo: nothing in it was measured."""

from pathlib import Path

import numpy as np

from cggm_cls.data.simulated import SimulatedModality, simulate_sequences, simulated_folder

DEMO = {
    "signal": SimulatedModality(width=8, steps=(10, 30), information=0.6, strength=0.4),
    "table": SimulatedModality(width=12, steps=(1, 1), information=0.8, strength=2.0),
}
"""Modalities of the simulated folder."""


def simulate_array_folder(folder: Path, *, samples: int = 400, seed: int = 0) -> None:
    """Write a simulated folder of arrays, of three classes; nothing in it was measured.

    A row of a table tells most and is learnt fast, a signal tells less and is learnt slowly. A
    folder that holds the same already is left as it is.

    Args:
        folder: Absent, empty, or one that this function wrote.
        samples: How many.
        seed: The same seed gives the same arrays, not negative.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    settings = {"generator": 1, "samples": samples, "seed": seed}
    with simulated_folder(folder, settings) as draft:
        if draft is None:
            return
        target = np.random.default_rng([seed, 2]).integers(3, size=samples)
        sequences = simulate_sequences(DEMO, target, seed=seed, split=0)
        signals, lengths = sequences["signal"], [len(s) for s in sequences["signal"]]
        padded = [np.pad(s, ((0, max(lengths) - len(s)), (0, 0))) for s in signals]
        np.save(draft / "signal.npy", np.stack(padded))
        np.save(draft / "signal.lengths.npy", np.array(lengths))
        np.save(draft / "table.npy", np.concatenate(sequences["table"]))
        np.save(draft / "target.npy", np.array(["low", "middle", "high"])[target])
