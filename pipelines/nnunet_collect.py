"""Write nnU-Net's predictions in the label values of a BraTS cohort, to be evaluated with it.

python pipelines/nnunet_collect.py --predictions OUT --data CASES --output LABELS
python pipelines/brats_evaluate.py --predictions LABELS --reference CASES
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cggm.runs import parse_options, run


@dataclass(frozen=True)
class CollectOptions:
    """Write nnU-Net's predictions in the label values of a cohort.

    Args:
        predictions: What nnUNetv2_predict wrote.
        data: Folder of the cohort.
        output: New folder for the label maps.
    """

    predictions: Path = field(metadata={"metavar": "DIR"})
    data: Path = field(metadata={"metavar": "DIR"})
    output: Path = field(metadata={"metavar": "DIR"})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(CollectOptions, __doc__, argv)
    from cggm_nnunet import collect_predictions

    cases = collect_predictions(options.predictions, options.data, options.output)
    print(f"{len(cases)} label maps in {options.output}")


if __name__ == "__main__":
    raise SystemExit(run(main))
