"""One rank that runs several commands, one after another, because it takes longer to start it."""

import importlib
import json
import sys

from cggm.runs.cli import run
from cggm.runs.launch import end_process, joined, ranked

if __name__ == "__main__":
    with joined("cpu"):
        for name, *argv in json.loads(sys.argv[1]):
            code = run(ranked(importlib.import_module(f"pipelines.{name}").main), argv)
            if code:
                break
    end_process(code)
