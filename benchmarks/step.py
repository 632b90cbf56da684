"""Time and memory of a CGGM training step against the joint step of the same network.

    python benchmarks/step.py [--encoder resnet101] [--size 160] [--batch 2] [--json FILE]

Sides take turns within one process for the times; peak memory is taken in a process of its own for
each side.
"""

import argparse
import copy
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cggm import CGGM, Balancer
from cggm_seg.heads import unimodal_heads
from cggm_seg.losses import SoftDiceCELoss
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.regions import region_dice_counts

SIDES = ("joint", "light heads", "full heads")
TARGETS = {"light heads": 1.05, "full heads": 1.10, "memory": 1.02}


def make_step(
    side: str, network: torch.nn.Module, batch: tuple[Tensor, Tensor]
) -> Callable[[], None]:
    """One training step of a side, on a network of its own."""
    loss = SoftDiceCELoss().to(batch[0].device)
    if side == "joint":
        balancer = Balancer(loss)
    else:
        heads = unimodal_heads(network, light=side == "light heads")
        balancer = CGGM(heads, loss, region_dice_counts)
    balancer.bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        balancer(network(batch[0]), batch[1]).backward()
        optimizer.step()
        if batch[0].is_cuda:
            torch.cuda.synchronize()

    return step


def make_parts(options: argparse.Namespace) -> tuple[torch.nn.Module, tuple[Tensor, Tensor]]:
    """The network and a batch of random slices, always the same."""
    torch.manual_seed(0)
    network = MultiEncoderDeepLabV3Plus(encoder_name=options.encoder).to(options.device)
    shape = (options.batch, 4, options.size, options.size)
    images, labels = torch.randn(shape), torch.randint(0, 4, (shape[0], *shape[2:]))
    return network, (images.to(options.device), labels.to(options.device))


def times(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step of each side, taking turns."""
    network, batch = make_parts(options)
    steps = {side: make_step(side, copy.deepcopy(network), batch) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats + 1):
        for side, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat > 0:
                seconds[side].append(time.perf_counter() - start)
    return {side: statistics.median(values) for side, values in seconds.items()}


def peak(options: argparse.Namespace) -> float:
    """Peak memory in MB of three steps of one side."""
    network, batch = make_parts(options)
    step = make_step(options.side, network, batch)
    for _ in range(3):
        step()
    if batch[0].is_cuda:
        return torch.cuda.max_memory_allocated() / 1e6
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3


def peaks(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of each side, in processes of their own."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("--json") and a != options.json]
    command = [sys.executable, __file__, *arguments, "--side"]
    return {
        side: float(subprocess.run([*command, side], check=True, capture_output=True).stdout)
        for side in SIDES
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="resnet101")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=SIDES, help="print one side's peak memory and stop")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    if options.side:
        print(peak(options))
        return
    seconds, memory = times(options), peaks(options)
    rows = {
        side: {
            "seconds": seconds[side],
            "time_ratio": seconds[side] / seconds["joint"],
            "peak_mb": memory[side],
            "memory_ratio": memory[side] / memory["joint"],
        }
        for side in SIDES
    }
    for side, row in rows.items():
        print(
            f"{side:12} {row['seconds']:8.3f} s  x{row['time_ratio']:.3f} "
            f"(at most {TARGETS.get(side, 1):.2f})  {row['peak_mb']:7.0f} MB  "
            f"x{row['memory_ratio']:.3f} (at most {TARGETS['memory']:.2f})"
        )
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k not in ("json", "side")}
        record = {
            "benchmark": "step",
            "settings": settings,
            "torch": torch.__version__,
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
