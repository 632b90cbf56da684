"""Seconds for Dice and HD95 of one case of 240 x 240 x 155 voxels: ours against MONAI's metrics.

Both score the same simulated case against the same lesion, shifted and with one false voxel far
away. MONAI's metrics get whole one-hot volumes of the three regions, made beforehand.

    python -m benchmarks.data.metrics [--json FILE] [--repeats 5]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric

from cggm_seg.evaluation.regions import REGIONS, region_mask
from cggm_seg.evaluation.scores import case_metrics
from cggm_seg.simulation.phantom import simulate_case
from cggm_seg.simulation.template import FULL_SHAPE

SPACING = (1.0, 1.0, 1.0)


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    prediction, reference = _case()
    found, wanted = _one_hot(prediction), _one_hot(reference)
    monai, ours = _median_seconds(
        [
            lambda: _monai(found, wanted),
            lambda: case_metrics(prediction, reference, SPACING),
        ],
        options.repeats,
    )
    scores, others = case_metrics(prediction, reference, SPACING), _monai(found, wanted)
    gap = max(abs(scores[metric] - others[metric]) for metric in scores)
    print(f"{'':<24}{'s per case':>12}")
    print(f"{'MONAI, whole volumes':<24}{monai:>12.3f}")
    print(f"{'case_metrics':<24}{ours:>12.3f}")
    print(f"\n{monai / ours:.1f} times faster; largest difference of a metric {gap:.1e}")
    result = {"monai_s": monai, "case_metrics_s": ours, "speedup": monai / ours, "difference": gap}
    if options.json:
        options.json.write_text(json.dumps(result | _conditions(options.repeats), indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds per case for Dice and HD95.")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median counts")
    return parser.parse_args()


def _case() -> tuple[np.ndarray, np.ndarray]:
    label = simulate_case(np.random.default_rng(0), FULL_SHAPE, enhancing=True)["seg"]
    label[label == 4] = 3
    reference = np.asfortranarray(label)
    prediction = np.asfortranarray(np.roll(label, (2, -1, 1), (0, 1, 2)))
    prediction[60, 60, 40] = 3
    return prediction, reference


def _one_hot(labels: np.ndarray) -> torch.Tensor:
    masks = [region_mask(labels, region) for region in REGIONS]
    return torch.from_numpy(np.stack(masks)).float()[None]


def _monai(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    dice = DiceMetric(include_background=True, reduction="none", ignore_empty=False)
    distance = HausdorffDistanceMetric(include_background=True, percentile=95, reduction="none")
    dice(found, wanted)
    distance(found, wanted)
    scores = {"dice": dice.aggregate()[0], "hd95": distance.aggregate()[0]}
    return {
        f"{metric}_{region}": float(values[index])
        for metric, values in scores.items()
        for index, region in enumerate(REGIONS)
    }


def _median_seconds(contenders: list[Callable[[], object]], repeats: int) -> list[float]:
    """Medians over rounds that run every contender once, after one round that does not count."""
    rounds = [[_seconds(work) for work in contenders] for _ in range(repeats + 1)]
    return [statistics.median(seconds) for seconds in zip(*rounds[1:], strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _conditions(repeats: int) -> dict[str, object]:
    return {"repeats": repeats, "threads": 1, "shape": FULL_SHAPE, "torch": torch.__version__}


if __name__ == "__main__":
    main()
