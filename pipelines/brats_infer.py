"""Segment BraTS volumes with a trained network, or with an ensemble; no head is loaded.

python pipelines/brats_infer.py --model runs/brats-20261124-101500 --input CASES --output OUT
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cggm.runs import (
    ConfigReader,
    RunFolder,
    check_problems,
    end_process,
    joined,
    ranked,
    read_config,
    report_problems,
    run,
)
from cggm_seg.inference import ComputeOptions, FileOptions, InferOptions
from cggm_seg.training import BratsConfig

if TYPE_CHECKING:
    from cggm_seg.data import Case
    from cggm_seg.inference import Predictions


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    reader = ConfigReader(InferOptions, FileOptions, ComputeOptions, description=__doc__)
    options, files = reader.read(InferOptions, argv), reader.read(FileOptions, argv)
    compute = reader.read(ComputeOptions, argv)
    from cggm_seg.data import find_input, label_scheme

    runs = [run for path in options.models for run in RunFolder.open(path).members()]
    config = read_config(BratsConfig, [runs[0].config])
    scheme = label_scheme(options.labels or config.labels)
    used = [name for name in config.used if name not in options.absences]
    cases, problems = find_input(options.input, modalities=used, labels=scheme)
    check_problems(cases, problems, strict=options.strict)

    predictions = _predict(options, files, compute, runs, cases)
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
    runs: Sequence[RunFolder],
    cases: Sequence["Case"],
) -> "Predictions":
    """Let the ranks share the cases; every one gets the outcome of all."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from cggm.distributed import is_first_rank
    from cggm_seg.inference import InferenceSettings, predict_cases
    from cggm_seg.training import TrainedNetwork

    settings = InferenceSettings(
        mode=compute.mode,
        flips=compute.flips,
        precision=compute.precision,
        batch_size=compute.batch_size,
    )
    trained = TrainedNetwork.load(runs)
    with joined(compute.device) as device, logging_redirect_tqdm():
        if len(runs) > 1 and is_first_rank():
            print(f"ensemble of {len(runs)}: {', '.join(str(run.path) for run in runs)}")
        return predict_cases(
            trained.network.to(device),
            cases,
            options.output,
            settings=settings,
            absent=options.absences,
            files=files,
            learned_from=trained.learned_from(cases),
            strict=options.strict,
        )


if __name__ == "__main__":
    end_process(run(ranked(main)))
