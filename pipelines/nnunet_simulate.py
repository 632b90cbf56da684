"""Write a small simulated data set in nnU-Net's layout: brain, prostate or two phases of a CT.

python pipelines/nnunet_simulate.py --raw $nnUNet_raw --number 501 --kind prostate
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.runs import parse_options, run


@dataclass(frozen=True)
class SimulateOptions:
    """Write a simulated data set.

    Args:
        raw: The folder nnUNet_raw.
        number: Of the data set, 1 to 999.
        kind: What is simulated.
        cases: For training; two more are for a test.
        regions: Whether organ and lesion are regions, one within the other, instead of classes.
        seed: The same seed gives the same cases.
    """

    raw: Path = field(metadata={"metavar": "DIR"})
    number: int = field(metadata={"metavar": "N"})
    kind: Literal["prostate", "ct", "brain"] = "prostate"
    cases: int = 6
    regions: bool = False
    seed: int = 0


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(SimulateOptions, __doc__, argv)
    from cggm_nnunet import simulate_dataset

    folder = simulate_dataset(
        options.raw,
        options.number,
        options.kind,
        cases=options.cases,
        regions=options.regions,
        seed=options.seed,
    )
    print(f"SIMULATED data set in {folder}")


if __name__ == "__main__":
    raise SystemExit(run(main))
