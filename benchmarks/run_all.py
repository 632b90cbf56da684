"""Every benchmark, one after another, as the figures in benchmarks/results were measured.

    python -m benchmarks.run_all [--output bench] [--only NAME ...]

Each writes <name>.json into the output folder, beside which benchmarks/results can be laid. All
take most of a day on two cores: fewer names do with less. The same command again goes on with
``dense``, ``lesions``, ``lacking``, ``precision`` and the two with known answers where they were
ended, and measures the others anew. Comparisons (``python pipelines/compare.py``, their commands
stand in docs/results.md), faults (``make faults``), mutants (``make mutants``) and what waits for a
GPU (``make gpu``) have commands of their own.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
KNOWN = "known.answer --jobs 2 --first 600 --seeds 6 --scenarios a b c d"
TRAINED = {"precision", "lacking", "lesions"}  # with folders of cohorts and runs
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
    """Run them; those that fail do not keep the others from being run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder of the JSON")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    folder = options.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.only:
        print(f"\n{name}", flush=True)
        module, *words = COMMANDS[name].split()
        words += ["--json", str(folder / f"{name}.json")]
        words += ["--folder", str(folder / name)] if name in TRAINED else []
        words += ["--resume"] if module == "known.answer" else []
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *words], cwd=ROOT)
        failed += [name] if done.returncode else []
    if failed:
        sys.exit(f"\nWithout a result: {', '.join(failed)}; what they said stands above.")


if __name__ == "__main__":
    main()
