"""The README's Python runs, and its commands name scripts, options and targets that exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from torch import nn

from cggm.commands.scripts import find_scripts, split_words
from tests import release
from tests.document_parts import late_parts
from tests.quantifiers import every

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CHECKPOINT_PEERS = ("torch.load, weights_only", "safetensors")
COMMANDS = re.findall(r"^(?: {4})?((?:cggm|make) \S.*)$", README, re.MULTILINE)


def test_three_lines_attach_to_a_monai_trainer():
    names = late_parts()
    exec(BLOCKS[0], names)
    assert names["trainer"].state.iteration == 8
    assert names["balancer"].scores.steps == 8


def test_ignite_trainer():
    from ignite.engine import create_supervised_trainer

    names = late_parts()
    exec(BLOCKS[0].replace("trainer.run()", "").replace("BalanceHandler(balancer).", "# "), names)
    names["trainer"] = create_supervised_trainer(
        names["network"], names["optimizer"], nn.CrossEntropyLoss()
    )
    exec(BLOCKS[1], names)
    names["trainer"].run(names["loader"], max_epochs=1)
    assert names["balancer"].scores.steps == 8


def test_bare_loop():
    names = late_parts()
    exec(BLOCKS[0].replace("trainer.run()", "").replace("BalanceHandler(balancer).", "# "), names)
    exec(BLOCKS[2], names)
    assert names["balancer"].scores.steps == 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--" in c and c.startswith("cggm")])
def test_commands_and_their_options_exist(command):
    words, behind = split_words(shlex.split(command)[1:], find_scripts())
    answer = subprocess.run(
        [sys.executable, "-m", "cggm", *words, "--help"], capture_output=True, text=True, check=True
    )
    options = [a for a in behind if a.startswith("--")]
    assert words
    assert options
    assert not [option for option in options if f"{option} " not in answer.stdout]


def test_the_release_check_runs_each_command_in_a_small_size():
    shown = [*release.commands()]
    run = [release.small(command) for command in shown]
    assert len(run) == len(shown) >= 13
    assert every(f"{line} ".startswith(tuple(f"{b} " for b in release.SMALL)) for line in run)
    assert not [line for line in run if "/brats2021" in line]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [c.removeprefix("make ") for c in COMMANDS if c.startswith("make")]
    assert set(targets) == {"test"}
    assert len([c for c in COMMANDS if c.startswith("cggm ")]) >= 9
    assert every(f"\n{target}:" in makefile for target in targets)


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) >= 4
    assert not [link for link in links if not (ROOT / link).exists()]


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_figures_are_those_of_the_benchmarks():
    step, seconds = result("step")["rows"], result("slices")["figures"]["seconds"]
    for heads in ("light heads", "full heads"):
        row = step[heads]
        figure = (
            f"{row['time_ratio']:.2f} times the time, {row['memory_ratio']:.2f} times the memory"
        )
        assert figure in BENCHMARKS
    feeds = {
        name: seconds[name] / seconds["SliceDataset"]
        for name in seconds
        if name.startswith("monai")
    }
    assert f"{feeds['monai Dataset']:.0f} times as fast" in BENCHMARKS
    assert f"{feeds['monai CacheDataset']:.0f} times as fast" in BENCHMARKS
    assert f"{feeds['monai CacheDataset(copy_cache=False)']:.1f} times as fast" in BENCHMARKS
    assert f"{seconds['cache build']:.2f} s per case and core" in BENCHMARKS
    assert f"{result('metrics')['speedup']:.1f} times as fast" in BENCHMARKS
    speed = next(
        t["value"] for t in result("inference")["targets"] if "speed over windows" in t["what"]
    )
    assert f"{speed:.2f} times as fast" in BENCHMARKS
    sequences = result("sequences")["rows"]
    for side in ("CGGM", "CGGM, two-layer heads"):
        assert f"{sequences[side]['time_ratio']:.2f} times the time" in BENCHMARKS
    for side in ("plain", "plain, no attention dropout"):
        assert f"{sequences[side]['time_ratio']:.2f} times as fast" in BENCHMARKS
    worst = max(protocol["ratio"] for protocol in result("pickles")["protocols"])
    assert f"{worst:.2f} times the time" in BENCHMARKS
    assert f"{result('features')['targets'][0]['value']:.0f} times as fast" in BENCHMARKS


def test_figures_of_bfloat16_are_those_that_were_measured():
    found = result("precision")
    assert len(found["steps"]) == 2
    for ratios in found["steps"].values():
        told = f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} turns)"
        assert f"{median(ratios):.2f} times the processor time {told}" in BENCHMARKS
    rows = {(row["precision"], row["seed"]): row for row in found["rows"]}
    half, full = ([rows[side, seed] for seed in (0, 1)] for side in ("bfloat16", "float32"))
    assert "float32: {:.3f}, {:.3f} |".format(*(row["dice"] for row in full)) in BENCHMARKS
    assert "| {:.3f}, {:.3f};".format(*(row["dice"] for row in half)) in BENCHMARKS
    one, other = (sum(row["processor_seconds"] for row in side) for side in (half, full))
    assert f"{one / other:.2f} times the processor time of whole trainings" in BENCHMARKS


def test_figures_of_starts_are_those_that_were_measured():
    seconds = {way: median(own) for way, own in result("starts")["processor_seconds"].items()}
    page = " ".join((ROOT / "docs" / "design.md").read_text().split())
    assert f"takes {seconds['server']:.1f} s of the processor that way" in page
    assert f"{seconds['fresh']:.1f} s as a process of its own" in page
    assert f"{seconds['submitit']:.1f} s as a job of submitit's local executor" in page
    assert f"joblib's loky takes {seconds['loky']:.1f} s" in page


def test_figures_of_the_readme_are_in_the_table():
    figures = re.findall(r"[\d.]+\s+times\s+(?:the time|as\s+fast)", README)
    assert len(figures) == 3
    assert not [f for f in figures if " ".join(f.split()) not in BENCHMARKS]


def test_figures_of_faults_are_those_of_the_suite():
    families = result("faults")
    assert every(family["holds"] and not family["quick"] for family in families.values())
    figures = {name: family["figures"] for name, family in families.items()}
    flips, checkpoints = figures["bit_flips"], figures["checkpoint_flips"]
    changing = flips["content-changing flips"]
    assert (
        f"{flips['ours']['reported']} of {changing} reported, {flips['alarms']} alarms"
        in BENCHMARKS
    )
    assert (
        f"nibabel {flips['nibabel']['reported']}, MONAI {flips['MONAI']['reported']}" in BENCHMARKS
    )
    loaded = [checkpoints[peer]["accepted with other weights"] for peer in CHECKPOINT_PEERS]
    assert "weights_only {}, safetensors {}".format(*loaded) in BENCHMARKS
    kills = [figures["kills"][kind] for kind in ("forks", "real starts")]
    assert every(killed["identical"] == killed["kills"] for killed in kills)
    hit = sum(killed["kills"] for killed in kills)
    assert f"{hit} of {hit} resume to the same bytes" in BENCHMARKS
