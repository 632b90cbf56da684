"""Compare label maps with reference segmentations by the rules of BraTS 2021 or 2023.

python pipelines/brats_evaluate.py --predictions OUT --reference CASES
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.runs import end_process, joined, parse_options, ranked, report_problems, require, run


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare label maps with reference segmentations.

    Args:
        predictions: Folder of label maps, <case>.nii.gz.
        reference: Folder of labelled cases.
        output: JSON file for the results.
        rule: Scores of whole volumes (brats2021) or of lesions, whose misses and false alarms count
            as Dice 0 and HD95 374 mm (brats2023).
        labels: Label values of the references: brats2021, brats2023, brats-ped, brats2013,
            brats2024, or pairs such as 1=NCR,2=ED,4=ET; told by names and contents where not given.
        strict: Whether a bad case ends the run; otherwise it is left out and listed.
    """

    predictions: Path = field(metadata={"metavar": "DIR"})
    reference: Path = field(metadata={"metavar": "DIR"})
    output: Path | None = field(default=None, metadata={"metavar": "FILE"})
    rule: Literal["brats2021", "brats2023"] = "brats2021"
    labels: str | None = field(default=None, metadata={"metavar": "SCHEME"})
    strict: bool = False

    def __post_init__(self) -> None:
        page = self.output is not None and self.output.suffix == ".html"
        require(not page, "output", "of another name, as the report beside it has", self.output)


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(EvaluateOptions, __doc__, argv)
    from cggm.distributed import is_first_rank
    from cggm.runs import prepare_json, write_atomically
    from cggm_seg.data import label_scheme
    from cggm_seg.evaluation import evaluate_folder
    from cggm_seg.reports import report_evaluation

    if options.output is not None:
        prepare_json(options.output)
    with joined("cpu"):
        evaluation = evaluate_folder(
            options.predictions,
            options.reference,
            strict=options.strict,
            sharded=True,
            rule=options.rule,
            labels=label_scheme(options.labels),
        )
        if not is_first_rank():
            return
    print(evaluation.table())
    print(f"\nmean Dice of WT, TC and ET: {evaluation.mean_dice:.3f}")
    if options.output is not None:
        folders = {"predictions": options.predictions, "reference": options.reference}
        write_atomically(options.output, evaluation.to_json(**folders).encode())
        print(f"report   {report_evaluation(options.output)}")
    report_problems(evaluation.problems)


if __name__ == "__main__":
    end_process(run(ranked(main)))
