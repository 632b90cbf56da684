"""Run every benchmark, one after another, and write benchmarks/results/<name>.json.

python benchmarks/run_all.py
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "slices",
    "step",
    "inference",
    "metrics",
    "sequences",
    "methods",
    "known_answer",
    "pickles",
    "features",
)


def main() -> None:
    """Run them; a benchmark that fails ends the run."""
    (HERE / "results").mkdir(exist_ok=True)
    for name in NAMES:
        print(f"\n{name}", flush=True)
        result = HERE / "results" / f"{name}.json"
        subprocess.run([sys.executable, HERE / f"{name}.py", "--json", result], check=True)


if __name__ == "__main__":
    main()
