"""Segment BraTS volumes with a trained network; no head is loaded.

python pipelines/brats_infer.py --model runs/brats-20261124-101500 --input CASES --output OUT
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.errors import DataError
from cggm.runs.cli import check_problems, parse_options, report_problems, run
from cggm.runs.config import read_config
from cggm.runs.folder import RunFolder
from cggm.runs.ranks import joined, ranked
from cggm_seg.cases import Case, find_cases
from cggm_seg.config import BratsConfig


@dataclass(frozen=True)
class InferOptions:
    """Segment BraTS volumes with a trained network.

    Args:
        model: Run folder of a training; its best checkpoint is used.
        input: Folder of cases; a case may lack modalities.
        output: Folder of the label maps, <case>.nii.gz.
        mode: Whole slices, or overlapping windows as MONAI cuts them.
        precision: bf16 where the hardware computes it, if auto.
        batch_size: Slices at once; chosen by the device where not given.
        overwrite: Whether to replace label maps that are there.
        strict: Whether a bad case ends the run; otherwise it is left out and listed.
        device: Where to compute; CUDA if there is one, where not given.
    """

    model: Path = field(metadata={"metavar": "RUN"})
    input: Path = field(metadata={"metavar": "DIR"})
    output: Path = field(metadata={"metavar": "DIR"})
    mode: Literal["whole", "window"] = "whole"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    batch_size: int | None = None
    overwrite: bool = False
    strict: bool = False
    device: Literal["cpu", "cuda"] | None = None


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(InferOptions, "Segment BraTS volumes with a trained network.", argv)
    folder = RunFolder.open(options.model)
    config = read_config(BratsConfig, [folder.config])
    cases, problems = find_cases(options.input, labelled=False, allow_missing=True)
    check_problems(cases, problems, strict=options.strict)

    written, damaged = _predict(options, folder, config, cases)
    problems += damaged
    check_problems(written, problems)
    print(f"{len(written)} label map{'' if len(written) == 1 else 's'} in {options.output}")
    report_problems(problems)


def _predict(
    options: InferOptions, folder: RunFolder, config: BratsConfig, cases: Sequence[Case]
) -> tuple[list[Path], list[DataError]]:
    """Let the ranks share the cases; every one gets the outcome of all."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from cggm.runs.checkpoint import load_network_weights
    from cggm_seg.build import build_network
    from cggm_seg.inference import InferenceSettings, predict_cases

    settings = InferenceSettings(
        mode=options.mode, precision=options.precision, batch_size=options.batch_size
    )
    network = build_network(config.network, config.used, pretrained=False)
    load_network_weights(folder.checkpoints, network)
    with joined(options.device) as device, logging_redirect_tqdm():
        return predict_cases(
            network.to(device),
            cases,
            options.output,
            settings=settings,
            overwrite=options.overwrite,
            strict=options.strict,
            sharded=True,
        )


if __name__ == "__main__":
    raise SystemExit(run(ranked(main)))
