"""Train a BraTS segmentation network with a balancing method.

    python pipelines/brats_train.py --data /brats2021

With --folds K it trains K networks, each without another share of the patients.
Without --data it trains on simulated cases (made on first use) and says so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cggm.runs import (
    RunFolder,
    RunOptions,
    end_process,
    first_alone,
    joined,
    parse_training,
    ranked,
    run,
    same_output,
)
from cggm_seg.training import BratsConfig

if TYPE_CHECKING:
    import torch

CONFIGS = Path(__file__).parent.parent / "configs" / "brats"
DEMO_COHORT = Path("demo/cohort/train")
DEMO_CASES = 16


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    config, options = parse_training(
        BratsConfig,
        __doc__,
        argv,
        CONFIGS,
    )
    with joined(config.device) as device:
        _train(config, same_output(options, "brats"), device)


def _train(config: BratsConfig, options: RunOptions, device: "torch.device") -> None:
    # Nothing of the run is written before data, network and method are known to fit.
    if options.resume:
        folder = RunFolder.open(options.resume)
    else:
        folder = RunFolder.plan(options.output, name="brats")
    data = config.data or first_alone(lambda: _demo_cohort(config))

    from cggm_seg.training import train_or_cross_validate

    train_or_cross_validate(config, folder, data, device)


def _demo_cohort(config: BratsConfig) -> Path:
    from cggm_seg.simulation import simulate_cohort

    print(
        f"No --data given: training on {DEMO_CASES} SIMULATED cases in {DEMO_COHORT}.", flush=True
    )
    simulate_cohort(DEMO_COHORT, cases=DEMO_CASES, workers=max(1, config.processes))
    return DEMO_COHORT


if __name__ == "__main__":
    end_process(run(ranked(main)))
