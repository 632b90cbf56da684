"""Train emotion recognition on IEMOCAP with a balancing method.

    python pipelines/iemocap_train.py --data IEMOCAP_features_2021 --fold all

Takes the folder of MMIN. Without --data it trains on simulated sequences (written on first use) and
says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from cggm.runs import end_process, first_alone, joined, parse_training, ranked, run, same_output
from cggm_cls.training import SequenceConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "iemocap"
DEMO = Path("demo/iemocap")


@dataclass(frozen=True, kw_only=True)
class IemocapConfig(SequenceConfig):
    """A training on IEMOCAP.

    Args:
        fold: Number of a fold, or all.
    """

    task: ClassVar[str] = "iemocap"
    may_change: ClassVar[frozenset[str]] = SequenceConfig.may_change | {"fold"}
    fold: int | Literal["all"] = field(default=1, metadata={"metavar": "N|all"})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    config, options = parse_training(IemocapConfig, __doc__, argv, CONFIGS)

    from cggm_cls.data.iemocap import fold_numbers, load_iemocap
    from cggm_cls.training import run_experiment

    with joined(config.device):
        data = config.data or first_alone(_demo_data)
        run_experiment(
            config,
            same_output(options, "iemocap"),
            lambda fold: load_iemocap(data, fold),
            name="iemocap",
            folds=fold_numbers(data) if config.fold == "all" else [config.fold],
        )


def _demo_data() -> Path:
    from cggm_cls.data.iemocap import simulate_iemocap

    print(f"No --data given: training on SIMULATED sequences in {DEMO}.", flush=True)
    simulate_iemocap(DEMO)
    return DEMO


if __name__ == "__main__":
    end_process(run(ranked(main)))
