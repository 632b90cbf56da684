"""Train a sentiment regression on CMU-MOSI or CMU-MOSEI with a balancing method.

    python pipelines/mosi_train.py --data mosi_data.pkl

Takes the files of MulT, MMSA and MultiBench. A pickle is converted on first use and not read again.
Without --data it trains on simulated sequences (written on first use) and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cggm.runs import end_process, first_alone, joined, parse_training, ranked, run, same_output
from cggm_cls.training import SequenceConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "mosi"
DEMO = Path("demo/mosi/mosi_data.pkl")


@dataclass(frozen=True, kw_only=True)
class MosiConfig(SequenceConfig):
    """A training on CMU-MOSI or CMU-MOSEI.

    Args:
        store: Folder that a pickle is converted to; <file>.converted where not given.
    """

    task: ClassVar[str] = "mosi"
    may_change: ClassVar[frozenset[str]] = SequenceConfig.may_change | {"store"}
    store: Path | None = field(default=None, metadata={"metavar": "DIR"})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    config, options = parse_training(MosiConfig, __doc__, argv, CONFIGS)

    from cggm_cls.data.mosi import load_mosi
    from cggm_cls.training import run_experiment

    with joined(config.device):
        data = config.data or first_alone(_demo_data)
        run_experiment(
            config,
            same_output(options, "mosi"),
            lambda _: first_alone(lambda: load_mosi(data, config.store)),
            name="mosi",
        )


def _demo_data() -> Path:
    from cggm_cls.data.mosi import simulate_mosi

    print(f"No --data given: training on SIMULATED sequences in {DEMO}.", flush=True)
    if not DEMO.exists():
        simulate_mosi(DEMO)
    return DEMO


if __name__ == "__main__":
    end_process(run(ranked(main)))
