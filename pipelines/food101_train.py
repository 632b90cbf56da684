"""Train food recognition on the features of UPMC Food-101 with a balancing method.

    python pipelines/food101_train.py --data features

The features come from food101_features.py. Without --data it makes those of simulated records with
tiny random backbones (on first use) and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cggm.runs import end_process, first_alone, joined, parse_training, ranked, run, same_output
from cggm_cls.training import SequenceConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "food101"
DEMO = Path("demo/food101")


@dataclass(frozen=True, kw_only=True)
class FoodConfig(SequenceConfig):
    """A training on the features of Food-101; data is what food101_features.py wrote."""

    task: ClassVar[str] = "food101"


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    config, options = parse_training(FoodConfig, __doc__, argv, CONFIGS)

    from cggm_cls.data.food101 import load_food101
    from cggm_cls.training import run_experiment

    with joined(config.device):
        data = config.data or first_alone(_demo_data)
        run_experiment(
            config,
            same_output(options, "food101"),
            lambda _: load_food101(None, data, seed=config.seed),
            name="food101",
        )


def _demo_data() -> Path:
    from cggm_cls.data.food101 import simulate_features

    print(f"No --data given: SIMULATED records in {DEMO}, RANDOM backbones.", flush=True)
    return simulate_features(DEMO)


if __name__ == "__main__":
    end_process(run(ranked(main)))
