"""Train on a folder of your own arrays with a balancing method.

    python pipelines/arrays_train.py --data FOLDER

The folder holds a file per modality, such as lab.csv or ecg.npy, with rows of features or padded
sequences, and one of targets; a dataset.yaml may say what is what. docs/arrays.md has more.
Without --data it trains on simulated arrays (written on first use) and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from cggm.runs import end_process, first_alone, joined, parse_training, ranked, run, same_output
from cggm_cls.training import SequenceConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "arrays"
DEMO = Path("demo/arrays")


@dataclass(frozen=True, kw_only=True)
class ArraysConfig(SequenceConfig):
    """A training on arrays.

    Args:
        target: Name of what is predicted, where the folder has several.
        split_seed: Chooses the splits where the folder has none; all seeds of a training share it.
        missing: What becomes of NaN and infinite values, and of samples that a file lacks; absent
            leaves out rows and steps with any, so that a sample may lack a modality.
        standardize: Whether features get mean 0 and deviation 1 over the training split.
    """

    task: ClassVar[str] = "arrays"
    target: str | None = field(default=None, metadata={"metavar": "NAME"})
    split_seed: int = 0
    missing: Literal["refuse", "absent"] = "refuse"
    standardize: bool = True


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    config, options = parse_training(ArraysConfig, __doc__, argv, CONFIGS)

    from cggm_cls.data.arrays import load_array_folder
    from cggm_cls.training import run_experiment

    with joined(config.device):
        data = config.data or first_alone(_demo_data)
        run_experiment(
            config,
            same_output(options, "arrays"),
            lambda _: load_array_folder(
                data,
                target=config.target,
                split_seed=config.split_seed,
                missing=config.missing,
                standardize=config.standardize,
            ),
            name="arrays",
        )


def _demo_data() -> Path:
    from cggm_cls.data.arrays import simulate_array_folder

    print(f"No --data given: training on SIMULATED arrays in {DEMO}.", flush=True)
    simulate_array_folder(DEMO)
    return DEMO


if __name__ == "__main__":
    end_process(run(ranked(main)))
