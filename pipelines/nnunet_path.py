"""Print the folder in which nnU-Net finds the balanced trainers.

    export nnUNet_extTrainer=$(cggm nnunet path)

or from a checkout:

    python pipelines/nnunet_path.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cggm.runs import parse_options, run


@dataclass(frozen=True)
class PathOptions:
    """Nothing to choose."""


def main(argv: Sequence[str]) -> None:
    """Parse, print."""
    parse_options(PathOptions, __doc__, argv)
    from cggm_nnunet import trainers_folder

    print(trainers_folder())


if __name__ == "__main__":
    raise SystemExit(run(main))
