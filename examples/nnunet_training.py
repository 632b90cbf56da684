"""CGGM in nnU-Net, by nnU-Net's own commands, from raw data to readings; data are SIMULATED."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from cggm_nnunet import simulate_dataset, trainers_folder

NUMBER, KEYS = "501", ("score", "term")


def run(command: str, *arguments: str) -> None:
    """One of nnU-Net's commands, from the folder of this Python."""
    script = Path(sys.executable).with_name(f"nnUNetv2_{command}")
    subprocess.run([script, *arguments], check=True, stdout=subprocess.DEVNULL)


with TemporaryDirectory() as folder:
    paths = {part: Path(folder) / part for part in ("raw", "preprocessed", "results")}
    os.environ.update({f"nnUNet_{part}": str(path) for part, path in paths.items()})
    os.environ |= {"nnUNet_extTrainer": str(trainers_folder()), "nnUNet_n_proc_DA": "1"}

    simulate_dataset(paths["raw"], int(NUMBER), "prostate")
    run("plan_and_preprocess", "-d", NUMBER, "-c", "2d", "-np", "1", "-npfp", "1")

    # Short and narrow, for a processor; without this file nnU-Net's 1000 epochs and planned widths.
    settings = {"epochs": 3, "iterations": 50, "validation_iterations": 1, "width": 0.25}
    (plans,) = paths["preprocessed"].glob("*/nnUNetPlans.json")
    plans.with_name("cggm.yaml").write_text(json.dumps({**settings, "head_lr": 0.01}))
    run("train", NUMBER, "2d", "0", "-tr", "nnUNetTrainerCGGM", "-device", "cpu")

    (log,) = paths["results"].glob("*/*/fold_0/balance.jsonl")
    last = [json.loads(line) for line in log.read_text().splitlines()][-75:]
    names = last[0]["score"]
    score, term = ({n: mean(line[key][n] for line in last) for n in names} for key in KEYS)
    for name in sorted(names, key=score.__getitem__, reverse=True):
        print(f"{name:<5}  score {score[name]:.2f}  B {term[name]:.2f}  (means of 75 steps)")
