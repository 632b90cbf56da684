"""Time and memory of a CGGM training step against the joint step of the same network.

    python -m benchmarks.methods.segmentation_step [--encoder resnet101]
        [--size 160] [--batch 2] [--json FILE]

Sides take turns within one process for the times; peak memory is taken in a process of its own for
each side.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from cggm import CGGM, Balancer
from cggm_seg.evaluation.regions import region_dice_counts
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.training.balancing import unimodal_heads
from cggm_seg.training.losses import SoftDiceCELoss

MODULE = "benchmarks.methods.segmentation_step"
SIDES = ("joint", "light heads", "full heads")
TARGETS = {"light heads": 1.05, "full heads": 1.10, "memory": 1.02}


def make_balancer(side: str, network: torch.nn.Module) -> Balancer:
    """The criterion of a side."""
    loss = SoftDiceCELoss()
    if side == "joint":
        return Balancer(loss)
    heads = unimodal_heads(network, light=side == "light heads")
    return CGGM(heads, loss, region_dice_counts)


def timed_step(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    balancer: Balancer,
    batch: tuple[Tensor, Tensor],
) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    balancer(network(batch[0]), batch[1]).backward()
    optimizer.step()
    if batch[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_parts(
    options: argparse.Namespace,
) -> tuple[torch.nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    """The network, its optimizer and a batch of random slices, always the same."""
    torch.manual_seed(0)
    network = MultiEncoderDeepLabV3Plus(encoder_name=options.encoder).to(options.device)
    shape = (options.batch, 4, options.size, options.size)
    images, labels = torch.randn(shape), torch.randint(0, 4, (shape[0], *shape[2:]))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    return network, optimizer, (images.to(options.device), labels.to(options.device))


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the steps of each side, taking turns on one network and optimizer."""
    network, optimizer, batch = make_parts(options)
    balancers = {side: make_balancer(side, network) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats + 1):
        for side, balancer in balancers.items():
            balancer.bind(network)
            taken = timed_step(network, optimizer, balancer, batch)
            balancer.unbind()
            if repeat > 0:
                seconds[side].append(taken)
    return seconds


def ratio(side: list[float], joint: list[float]) -> float:
    """Median of the ratios within a turn, where both sides meet the same load."""
    return statistics.median(a / b for a, b in zip(side, joint, strict=True))


def peak(options: argparse.Namespace) -> float:
    """Peak memory in MB of three steps of one side."""
    network, optimizer, batch = make_parts(options)
    balancer = make_balancer(options.side, network).bind(network)
    for _ in range(3):
        timed_step(network, optimizer, balancer, batch)
    if batch[0].is_cuda:
        return torch.cuda.max_memory_allocated() / 1e6
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3


def peaks(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of each side, in processes of their own."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("--json") and a != options.json]
    command = [sys.executable, "-m", MODULE, *arguments, "--side"]
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
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=SIDES, help="print one side's peak memory and stop")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    if options.side:
        print(peak(options))
        return
    memory, seconds = peaks(options), times(options)
    rows = {
        side: {
            "seconds": statistics.median(seconds[side]),
            "time_ratio": ratio(seconds[side], seconds["joint"]),
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
