"""Write a cohort of simulated BraTS cases, labelled as such.

    python pipelines/brats_simulate.py --output cohort --lesions small

The anatomy is that of the ICBM152 template. Complete cases are kept: a cohort that was cut off, or
is to have more cases, goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.runs import parse_options, require, run


@dataclass(frozen=True)
class SimulationOptions:
    """Write a cohort of simulated BraTS cases.

    Args:
        output: Folder of the cases.
        cases: Number of cases; 16 with large lesions, 8 with small ones where not given.
        lesions: large, at 240 x 240 x 155 voxels, or small, at 120 x 120 x 78: cores of 5 to 10
            voxels in radius, with a rim a third brighter than white matter in T1ce.
        seed: Seed of anatomy, lesions and noise; another one gives cases to hold out.
        workers: Cases at once, each of about 0.4 GB.
        prefix: What the names of the cases begin with; give cases that are held out another one.
    """

    output: Path = field(metadata={"metavar": "DIR"})
    cases: int | None = None
    lesions: Literal["large", "small"] = "large"
    seed: int = 0
    workers: int = 2
    prefix: str = "DEMO"

    def __post_init__(self) -> None:
        require(self.cases is None or self.cases >= 1, "cases", "of at least 1", self.cases)
        require(self.seed >= 0, "seed", "of at least 0", self.seed)
        require(self.workers >= 1, "workers", "of at least 1", self.workers)
        require(self.prefix.isalnum(), "prefix", "of letters and digits", self.prefix)


def main(argv: Sequence[str]) -> None:
    """Parse, simulate."""
    options = parse_options(SimulationOptions, __doc__, argv)
    from cggm_seg.simulation import simulate_cohort

    cases = simulate_cohort(
        options.output,
        cases=options.cases,
        seed=options.seed,
        lesions=options.lesions,
        workers=options.workers,
        prefix=options.prefix,
    )
    print(f"{len(cases)} SIMULATED cases with {options.lesions} lesions in {options.output}")


if __name__ == "__main__":
    raise SystemExit(run(main))
