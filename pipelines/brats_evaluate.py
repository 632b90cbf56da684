"""Compare label maps with reference segmentations by the rules of BraTS 2021.

python pipelines/brats_evaluate.py --predictions OUT --reference CASES
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cggm.runs.cli import parse_options, report_problems, run


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare label maps with reference segmentations.

    Args:
        predictions: Folder of label maps, <case>.nii.gz.
        reference: Folder of labelled cases.
        output: JSON file for the results.
        strict: Whether a bad case ends the run; otherwise it is left out and listed.
    """

    predictions: Path = field(metadata={"metavar": "DIR"})
    reference: Path = field(metadata={"metavar": "DIR"})
    output: Path | None = field(default=None, metadata={"metavar": "FILE"})
    strict: bool = False


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(
        EvaluateOptions, "Compare label maps with reference segmentations.", argv
    )
    from cggm.runs.folder import write_atomically
    from cggm_seg.evaluation import evaluate_folder, mean_dice

    evaluation = evaluate_folder(options.predictions, options.reference, strict=options.strict)
    print(evaluation.table())
    print(f"\nmean Dice of WT, TC and ET: {mean_dice(evaluation.rows):.3f}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, evaluation.to_json().encode())
    report_problems(evaluation.problems)


if __name__ == "__main__":
    raise SystemExit(run(main))
