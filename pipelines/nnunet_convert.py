"""Write a BraTS cohort as a raw nnU-Net data set with regions, whatever its naming and layout.

python pipelines/nnunet_convert.py --data CASES --raw $nnUNet_raw --number 137
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cggm.runs import parse_options, report_problems, run


@dataclass(frozen=True)
class ConvertOptions:
    """Write a cohort as a raw nnU-Net data set.

    Args:
        data: Folder of labelled cases.
        raw: The folder nnUNet_raw.
        number: Of the data set, 1 to 999.
        name: Of the data set, behind its number.
        labels: Label values of the references, see brats_evaluate.py; told by names and contents
            where not given.
    """

    data: Path = field(metadata={"metavar": "DIR"})
    raw: Path = field(metadata={"metavar": "DIR"})
    number: int = field(metadata={"metavar": "N"})
    name: str = "BraTS"
    labels: str | None = field(default=None, metadata={"metavar": "SCHEME"})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(ConvertOptions, __doc__, argv)
    from cggm_nnunet import convert_cohort
    from cggm_seg.data import label_scheme

    folder, problems = convert_cohort(
        options.data,
        options.raw,
        options.number,
        options.name,
        labels=label_scheme(options.labels),
    )
    print(f"data set {folder}")
    if (folder / "splits_final.json").is_file():
        print(f"Patients have several examinations: copy {folder / 'splits_final.json'}")
        print(f"to $nnUNet_preprocessed/{folder.name} before training, so that folds keep them.")
    report_problems(problems)


if __name__ == "__main__":
    raise SystemExit(run(main))
