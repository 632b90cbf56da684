"""Train recognition of activities on HTAD, sound and acceleration, real data in a package.

    pip install --no-deps multiviewstacking==0.7.5
    python pipelines/htad_train.py

Free for research and education, with a reference to Garcia-Ceja et al., MMM 2021; other use needs
its authors' permission. With --data it reads htad.csv from that folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cggm.runs import end_process, joined, parse_training, ranked, run, same_output
from cggm_cls.training import SequenceConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "htad"


@dataclass(frozen=True, kw_only=True)
class HtadConfig(SequenceConfig):
    """A training on HTAD.

    Args:
        split_seed: Chooses the splits, which all seeds of a training share.
    """

    task: ClassVar[str] = "htad"
    split_seed: int = 0


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    config, options = parse_training(HtadConfig, __doc__, argv, CONFIGS)

    from cggm_cls.data.packaged import load_htad
    from cggm_cls.training import run_experiment

    with joined(config.device):
        run_experiment(
            config,
            same_output(options, "htad"),
            lambda _: load_htad(config.data, seed=config.split_seed),
            name="htad",
        )


if __name__ == "__main__":
    end_process(run(ranked(main)))
