"""Write a trained network in a form that other tools read; no head is in it.

python pipelines/export.py runs/brats-20261124-101500 --to onnx
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.runs import RunFolder, parse_options, run

SHARED = Path(__file__).parents[1] / "configs" / "bundle"


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained network in a form that other tools read.

    Args:
        run: Run folder of a training, also accepted without --run as the first argument; its best
            checkpoint is used.
        to: MONAI bundle, ONNX model or program of torch.export; ONNX alone for sequences.
        output: Folder to be made; <RUN>/export/<form> where not given.
    """

    run: Path = field(metadata={"metavar": "RUN"})
    to: Literal["bundle", "onnx", "torch"]
    output: Path | None = field(default=None, metadata={"metavar": "DIR"})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    named = ["--run", *argv] if argv and not argv[0].startswith("-") else argv
    options = parse_options(ExportOptions, __doc__, named)
    folder = RunFolder.open(options.run)
    output = options.output or options.run / "export" / options.to

    if folder.task() == "brats":
        from cggm_seg.export import export_run

        export_run(folder, options.to, output, SHARED)
    else:
        from cggm_cls.export import export_sequences

        export_sequences(folder, options.to, output)
    print(output)


if __name__ == "__main__":
    raise SystemExit(run(main))
