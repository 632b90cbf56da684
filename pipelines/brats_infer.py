"""Segment BraTS volumes with a trained network; no head is loaded.

python pipelines/brats_infer.py --model runs/brats-20261124-101500 --input CASES --output OUT
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cggm.runs.cli import check_problems, report_problems, run
from cggm.runs.config import ConfigReader, read_config
from cggm.runs.folder import RunFolder
from cggm.runs.ranks import joined, ranked
from cggm_seg.case_table import find_input
from cggm_seg.cases import Case
from cggm_seg.config import BratsConfig
from cggm_seg.inference_options import ComputeOptions, FileOptions, InferOptions

if TYPE_CHECKING:
    from cggm_seg.inference import Predictions


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    reader = ConfigReader(InferOptions, FileOptions, ComputeOptions, description=__doc__)
    options, files = reader.read(InferOptions, argv), reader.read(FileOptions, argv)
    compute = reader.read(ComputeOptions, argv)
    folder = RunFolder.open(options.model)
    config = read_config(BratsConfig, [folder.config])
    cases, problems = find_input(options.input)
    check_problems(cases, problems, strict=options.strict)

    predictions = _predict(options, files, compute, folder, config, cases)
    problems += predictions.errors
    check_problems(predictions.files, problems)
    count, found = len(predictions.files), len(predictions.found)
    earlier = f", {found} of them made earlier" if found else ""
    print(f"{count} label map{'' if count == 1 else 's'} in {options.output}{earlier}")
    report_problems(problems)


def _predict(
    options: InferOptions,
    files: FileOptions,
    compute: ComputeOptions,
    folder: RunFolder,
    config: BratsConfig,
    cases: Sequence[Case],
) -> "Predictions":
    """Let the ranks share the cases; every one gets the outcome of all."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from cggm.runs.checkpoint import load_network_weights
    from cggm_seg.build import build_network
    from cggm_seg.inference import InferenceSettings, predict_cases

    settings = InferenceSettings(
        mode=compute.mode,
        flips=compute.flips,
        precision=compute.precision,
        batch_size=compute.batch_size,
    )
    network = build_network(config.network, config.used, pretrained=False)
    load_network_weights(folder.checkpoints, network)
    with joined(compute.device) as device, logging_redirect_tqdm():
        return predict_cases(
            network.to(device),
            cases,
            options.output,
            settings=settings,
            absent=[name.strip() for name in (options.absent or "").split(",") if name.strip()],
            probabilities=files.probabilities,
            previews=files.previews,
            overwrite=options.overwrite,
            strict=options.strict,
            sharded=True,
        )


if __name__ == "__main__":
    raise SystemExit(run(ranked(main)))
