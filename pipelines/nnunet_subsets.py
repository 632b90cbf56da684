"""Evaluate a trained nnU-Net on every subset of its modalities, with a heat map.

python pipelines/nnunet_subsets.py --model nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION
    --images imagesTs --labels labelsTs --output subsets
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cggm.runs import choose_device, parse_options, run


@dataclass(frozen=True)
class SubsetOptions:
    """Evaluate a model on every subset of its modalities.

    Args:
        model: Folder of a trained model, with its folds.
        images: Cases in nnU-Net's layout, CASE_0000.nii.gz.
        labels: Their references, CASE.nii.gz.
        output: New folder for predictions, subsets.json and report.html.
        folds: Of the ensemble, such as 0,1; all that there are where not given.
        checkpoint: Name of the checkpoints.
        mirroring: Whether predictions of mirrored images are averaged.
        device: cuda or cpu; a GPU where there is one if not given.
    """

    model: Path = field(metadata={"metavar": "DIR"})
    images: Path = field(metadata={"metavar": "DIR"})
    labels: Path = field(metadata={"metavar": "DIR"})
    output: Path = field(metadata={"metavar": "DIR"})
    folds: str | None = field(default=None, metadata={"metavar": "LIST"})
    checkpoint: str = "checkpoint_final.pth"
    mirroring: bool = True
    device: str | None = None


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(SubsetOptions, __doc__, argv)
    from cggm_nnunet import score_subsets

    folds = options.folds.split(",") if options.folds else None
    scores = score_subsets(
        options.model,
        options.images,
        options.labels,
        options.output,
        folds=folds and [fold if fold == "all" else int(fold) for fold in folds],
        checkpoint=options.checkpoint,
        mirroring=options.mirroring,
        device=str(choose_device(options.device)),
    )
    print(scores.table())
    print(f"report   {options.output / 'report.html'}")


if __name__ == "__main__":
    raise SystemExit(run(main))
