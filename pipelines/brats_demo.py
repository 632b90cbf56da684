"""The whole story on simulated cases: train, predict held-out cases, evaluate, draw.

    python pipelines/brats_demo.py

Prints each command that it runs, so that it can be repeated with real data.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cggm.commands import spoken
from cggm.errors import UserError
from cggm.runs import parse_options, read_json, run

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "brats" / "demo.yaml"


@dataclass(frozen=True)
class DemoOptions:
    """Train, predict, evaluate and draw on simulated cases.

    Args:
        folder: Where cohort and runs go.
        cases: Simulated cases to train on.
        held_out: Simulated cases to predict and evaluate.
        max_epochs: Passes over the training slices; those of the configuration where not given.
    """

    folder: Path = field(default=Path("demo"), metadata={"metavar": "DIR"})
    cases: int = 16
    held_out: int = 4
    max_epochs: int | None = None


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(DemoOptions, __doc__, argv)
    started = time.monotonic()
    training, held_out = options.folder / "cohort" / "train", options.folder / "cohort" / "held-out"
    model = options.folder / f"run-{datetime.now():%Y%m%d-%H%M%S}"
    predictions, evaluation = model / "predictions", model / "evaluation.json"

    print("All images and lesions of this demo are SIMULATED; its figures say nothing of patients.")
    _simulate(training, options.cases, seed=0, prefix="DEMO")
    _simulate(held_out, options.held_out, seed=1, prefix="HELD")
    epochs = [] if options.max_epochs is None else ["--max_epochs", options.max_epochs]
    _run("brats_train.py", "--data", training, "--config", CONFIG, "--output", model, *epochs)
    _run("brats_infer.py", "--model", model, "--input", held_out, "--output", predictions)
    _run(
        "brats_evaluate.py",
        *("--predictions", predictions, "--reference", held_out, "--output", evaluation),
    )
    overlay = _draw(held_out, predictions, model / "overlay.png")
    mean = read_json(evaluation)["statistics"]["mean"]
    dice = sum(mean[f"dice_{region}"] for region in ("WT", "TC", "ET")) / 3
    print(
        f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Mean Dice of WT, TC and ET on "
        f"{options.held_out} held-out SIMULATED cases: {dice:.3f}\n\n"
        f"prediction picture  {overlay}\n"
        f"training curves     {model / 'curves' / 'curves.png'}\n"
        f"scores              {evaluation}\n"
        f"label maps          {predictions}\n"
        f"run folder          {model}\n"
        f"simulated cohort    {options.folder / 'cohort'}"
    )


def _simulate(folder: Path, cases: int, seed: int, prefix: str) -> None:
    from cggm_seg.simulation import simulate_cohort

    print(f"\nsimulating {cases} cases in {folder}", flush=True)
    simulate_cohort(folder, cases=cases, seed=seed, prefix=prefix)


def _run(script: str, *arguments: object) -> None:
    words = [str(HERE / script), *map(str, arguments)]
    print(spoken(f"\n$ python {' '.join(words)}"), flush=True)
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code:
        raise UserError(f"{script} ended with code {code}.", "See its message above.")


def _draw(reference: Path, predictions: Path, path: Path) -> Path:
    from cggm_seg.data import MODALITIES, find_cases, read_case, read_labels
    from cggm_seg.pictures import save_overlay

    case = find_cases(reference, labelled=True)[0][0]
    volumes = read_case(case)
    prediction, _ = read_labels(predictions / f"{case.id}.nii.gz", case.id, case.labels)
    save_overlay(
        path,
        volumes.images,
        prediction,
        volumes.label,
        case_id=case.id,
        modalities=MODALITIES,
        note="simulated data",
        spacing=volumes.grid.spacing,
    )
    return path


if __name__ == "__main__":
    raise SystemExit(run(main))
