"""A training step in bfloat16 against float32 on a processor that has instructions for it.

    python -m benchmarks.methods.precision [--encoder tu-lcnet_050] [--size 128] [--batch 8]

Both take turns on one network, so that a change of load meets both. What the network comes to is
compared by training twice: pipelines/brats_train.py --amp cpu, and without.
"""

import argparse
import statistics
import time

import torch

from benchmarks.methods.segmentation_step import make_balancer, make_parts
from cggm_seg.inference import computes_bf16


def main() -> None:
    """Measure and print the ratio of each turn's times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="tu-lcnet_050")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args(namespace=argparse.Namespace(device="cpu"))
    network, optimizer, (images, labels) = make_parts(options)
    balancer = make_balancer("light heads", network).bind(network)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(options.turns + 1):
        for half in seconds:
            start = time.process_time()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = balancer(network(images), labels)
            loss.backward()
            optimizer.step()
            if turn:
                seconds[half].append(time.process_time() - start)
    ratios = sorted(a / b for a, b in zip(seconds[True], seconds[False], strict=True))
    told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    known = "has" if computes_bf16(torch.device("cpu")) else "lacks"
    print(f"bfloat16 takes {told} times the processor time of float32, {len(ratios)} turns;")
    print(f"{options.encoder}, {options.batch} slices of {options.size}; this processor {known} it")


if __name__ == "__main__":
    main()
