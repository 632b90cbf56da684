"""Every benchmark, one after another, as the figures in benchmarks/results were measured.

    python -m benchmarks.run_all [--output bench] [--only NAME ...]

Each writes <name>.json into the output folder, beside which benchmarks/results can be laid. All
take most of a day on two cores: fewer names do with less. Those that train (``lesions``,
``lacking``, ``precision``) go on from their file where it is there already. Comparisons (``python
pipelines/compare.py``, their commands stand in docs/results.md), faults (``make faults``), mutants
(``make mutants``) and what waits for a GPU (``make gpu``) have commands of their own.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
KNOWN = "known.answer --jobs 2 --first 600 --seeds 6 --scenarios a b c d"
# By name of the result, the module and its options.
COMMANDS = {
    "slices": "data.slices",
    "step": "methods.segmentation_step",
    "inference": "data.inference",
    "metrics": "data.metrics",
    "sequences": "methods.sequence_step",
    "methods": "methods.cost",
    "starts": "methods.starts",
    "pickles": "data.pickles",
    "features": "data.features",
    "many_cases": "data.many_cases",
    "nnunet": "methods.nnunet_step",
    "precision": "methods.precision",
    "guided": "known.proof --scenarios a b c d",
    "guided_three": "known.proof --scenarios e",
    "dense": "known.dense --seeds 8",
    "known_answer": KNOWN,
    "known_controls": f"{KNOWN} --tasks classification regression --optimizers sgd --controls",
    "lacking": "known.lacking --seeds 2",
    "lesions": "known.lesions",
}


def main() -> None:
    """Run them; a benchmark that fails ends the run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder of the JSON")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    folder = options.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        print(f"\n{name}", flush=True)
        module, *words = COMMANDS[name].split()
        command = [sys.executable, "-m", f"benchmarks.{module}", *words]
        subprocess.run([*command, "--json", folder / f"{name}.json"], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
