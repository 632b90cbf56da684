"""Every benchmark, one after another, each with its figures in benchmarks/results/<name>.json.

    python -m benchmarks.run_all

Faults have a command of their own, benchmarks.faults.run.
"""

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODULES = {
    "slices": "data.slices",
    "step": "methods.segmentation_step",
    "inference": "data.inference",
    "metrics": "data.metrics",
    "sequences": "methods.sequence_step",
    "methods": "methods.cost",
    "known_answer": "known.answer",
    "guided": "known.proof",
    "pickles": "data.pickles",
    "features": "data.features",
}


def main() -> None:
    """Run them; a benchmark that fails ends the run."""
    RESULTS.mkdir(exist_ok=True)
    for name, module in MODULES.items():
        print(f"\n{name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{module}", "--json", RESULTS / f"{name}.json"]
        subprocess.run(command, check=True, cwd=RESULTS.parents[1])


if __name__ == "__main__":
    main()
