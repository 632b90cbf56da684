"""Time and memory of whole-volume inference, against MONAI's SliceInferer in the same run.

    python -m benchmarks.data.inference [--json FILE] [--encoder NAME] [--device cpu|cuda]

The case is simulated at BraTS size, its brain fills the box of the SRI24 template. The network is
first trained on it for some steps, because labels of a random network are ties of noise. Every
time is the median over rounds, every ratio the median of those within a round, where all meet the
same load. MONAI gets z-scores, our time includes computing them. Runs on one thread.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from monai.inferers import SliceInferer
from scipy.ndimage import gaussian_filter

from benchmarks.machine import machine
from cggm_seg.data.preprocessing import intensity_statistics, zscore
from cggm_seg.inference.slices import InferenceSettings, computes_bf16
from cggm_seg.inference.volume import predict_volume
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.training.losses import SoftDiceCELoss

SHAPE = (240, 240, 155)
BRAIN = ((53, 25, 6), (186, 196, 140))  # first voxel and end
LESION = (139, 80, 78)
CROP, BATCH = 160, 4
INFERENCE_BATCH = 16  # of every contender
# Mean intensity of healthy tissue, NCR, ED and ET in flair, t1ce, t1 and t2.
CONTRASTS = ((300, 350, 700, 500), (400, 200, 350, 900), (450, 250, 350, 400), (350, 650, 600, 450))
WINDOWS, WHOLE = "monai SliceInferer, 160x160 windows", "monai SliceInferer, whole slices"
OURS, OURS_BF16 = "predict_volume, float32", "predict_volume, bf16"

Contenders = dict[str, Callable[[], np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--encoder", default="tu-regnetx_002")
    parser.add_argument("--decoder_channels", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=60, help="training steps beforehand")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, classes = simulated_case()
    network = new_network(options.encoder, options.decoder_channels).to(options.device)
    train(network, images, classes, options.steps)
    memory = peak_memory(network, images, options)
    figures = measure(network, images, classes, options.repeats) | memory
    rows = compare(figures)
    print_table(figures, rows)
    if options.json:
        result = {"machine": settings(options), "figures": figures, "targets": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def new_network(encoder: str, decoder_channels: int) -> MultiEncoderDeepLabV3Plus:
    return MultiEncoderDeepLabV3Plus(
        encoder_name=encoder,
        decoder_channels=decoder_channels,
        low_level_channels=16,
        aspp_dropout=0.1,
    )


def simulated_case() -> tuple[np.ndarray, np.ndarray]:
    """Intensities, int16, ``(4, H, W, Z)``, and classes, uint8, ``(H, W, Z)``."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    middles = [(a + b - 1) / 2 for a, b in zip(*BRAIN, strict=True)]
    radii = [(b - a) / 2 for a, b in zip(*BRAIN, strict=True)]
    brain = sum(((x - m) / r) ** 2 for x, m, r in zip(axes, middles, radii, strict=True)) <= 1
    distance = np.sqrt(sum((x - m) ** 2 for x, m in zip(axes, LESION, strict=True)))
    distance += 30 * gaussian_filter(rng.standard_normal(SHAPE, np.float32), 6)
    classes = np.select([distance < 12, distance < 20, distance < 32], [1, 3, 2], 0) * brain
    tissue = gaussian_filter(rng.standard_normal(SHAPE, np.float32), 3)
    images = np.zeros((4, *SHAPE), np.int16)
    for image, means in zip(images, np.float32(CONTRASTS), strict=True):
        values = means[classes] * (1 + 0.15 * tissue / tissue.std())
        values += 20 * rng.standard_normal(SHAPE, np.float32)
        image[brain] = np.maximum(values.round(), 1)[brain]
    return images, classes.astype(np.uint8)


def train(network: torch.nn.Module, images: np.ndarray, classes: np.ndarray, steps: int) -> None:
    rng = np.random.default_rng(0)
    scores = zscore(images, intensity_statistics(images))
    device = next(network.parameters()).device
    loss, optimizer = SoftDiceCELoss().to(device), torch.optim.AdamW(network.parameters(), 2e-3)
    brain, lesion = (np.flatnonzero(v.any(axis=(0, 1))) for v in (images[0], classes))
    network.train()
    for _ in range(steps):
        planes = [rng.choice(lesion if k else brain) for k in range(BATCH)]
        row, column = rng.integers(40, 60), rng.integers(25, 50)
        span = (slice(row, row + CROP), slice(column, column + CROP))
        batch = torch.from_numpy(scores[:, *span, planes]).movedim(-1, 0).to(device)
        target = torch.from_numpy(classes[*span, planes]).movedim(-1, 0).to(device).long()
        optimizer.zero_grad()
        loss(network(batch), target).backward()
        optimizer.step()
    network.eval()


def measure(
    network: torch.nn.Module, images: np.ndarray, classes: np.ndarray, repeats: int
) -> dict[str, Any]:
    """Seconds per case, and the share of voxels labelled as on whole slices in float32."""
    contenders = all_contenders(network, images)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    labels: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for name, action in contenders.items():
            start = time.perf_counter()
            labels[name] = action()
            seconds[name].append(time.perf_counter() - start)
    return {
        "seconds": {name: median(times) for name, times in seconds.items()},
        "rounds": seconds,
        "equal": {name: float((found == labels[WHOLE]).mean()) for name, found in labels.items()},
        "lesion_dice_to_whole": {
            n: lesion_dice(found, labels[WHOLE]) for n, found in labels.items()
        },
        "lesion_dice_to_truth": {n: lesion_dice(found, classes) for n, found in labels.items()},
    }


def all_contenders(network: torch.nn.Module, images: np.ndarray) -> Contenders:
    device = next(network.parameters()).device
    scores = torch.from_numpy(zscore(images, intensity_statistics(images)))[None].to(device)

    def slice_inferer(size: int, overlap: float) -> np.ndarray:
        inferer = SliceInferer(
            2, roi_size=(size, size), sw_batch_size=INFERENCE_BATCH, overlap=overlap
        )
        with torch.inference_mode():
            return inferer(scores, network)[0].argmax(0).cpu().numpy()

    def ours(precision: Literal["float32", "bf16"]) -> np.ndarray:
        settings = InferenceSettings(batch_size=INFERENCE_BATCH, precision=precision)
        return predict_volume(network, images, settings)

    contenders: Contenders = {
        WINDOWS: lambda: slice_inferer(CROP, 0.25),
        WHOLE: lambda: slice_inferer(SHAPE[0], 0.0),
        OURS: lambda: ours("float32"),
    }
    return contenders | ({OURS_BF16: lambda: ours("bf16")} if computes_bf16(device) else {})


def lesion_dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * ((one > 0) & (other > 0)).sum() / ((one > 0).sum() + (other > 0).sum()))


def peak_memory(
    network: torch.nn.Module, images: np.ndarray, options: argparse.Namespace
) -> dict[str, float]:
    """Resident memory of a process of its own that predicts the case, in GB."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        torch.save(network.state_dict(), Path(folder) / "weights.pt")
        job = (folder, options.encoder, options.decoder_channels, options.device)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, peak = pool.apply(predict_alone, job)
    return {"memory_gb": peak, "memory_before_gb": before}


def predict_alone(
    folder: str, encoder: str, decoder_channels: int, device: str
) -> tuple[float, float]:
    network = new_network(encoder, decoder_channels).to(device).eval()
    network.load_state_dict(torch.load(Path(folder) / "weights.pt", weights_only=True))
    images = np.load(Path(folder) / "images.npy")
    before = resident_peak()
    predict_volume(network, images, InferenceSettings(precision="float32"))
    return before, resident_peak()


def resident_peak() -> float:
    # getrusage would not do: a new process starts with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def compare(figures: dict[str, Any]) -> list[dict[str, Any]]:
    rounds = figures["rounds"]

    def speed(name: str) -> float:
        return median(w / s for w, s in zip(rounds[WINDOWS], rounds[name], strict=True))

    rows = [
        ("speed over windows, float32", speed(OURS), ">=", 4),
        ("voxels equal to whole slices, %", 100 * figures["equal"][OURS], ">=", 99.9),
        ("peak memory, GB", figures["memory_gb"], "<", 2),
    ]
    if OURS_BF16 in rounds:
        rows += [
            ("speed over windows, bf16", speed(OURS_BF16), ">=", 8),
            ("voxels equal, bf16, %", 100 * figures["equal"][OURS_BF16], ">=", 99.9),
        ]
    return [
        {
            "what": what,
            "value": value,
            "target": f"{relation} {target}",
            "reached": value >= target if relation == ">=" else value < target,
        }
        for what, value, relation, target in rows
    ]


def print_table(figures: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(f"{'':40s}{'s per case':>12s}{'equal %':>10s}{'Dice to whole':>15s}{'to truth':>10s}")
    for name, seconds in figures["seconds"].items():
        print(
            f"{name:40s}{seconds:12.2f}{100 * figures['equal'][name]:10.3f}"
            f"{figures['lesion_dice_to_whole'][name]:15.4f}"
            f"{figures['lesion_dice_to_truth'][name]:10.4f}"
        )
    print(f"\n{'':40s}{'measured':>14s}{'target':>14s}")
    for row in rows:
        verdict = "" if row["reached"] else "  missed"
        print(f"{row['what']:40s}{row['value']:14.2f}{row['target']:>14s}{verdict}")
    if OURS_BF16 not in figures["seconds"]:
        print("bf16 is not measured: this hardware only emulates it.")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **machine("torch", "monai"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "encoder": options.encoder,
        "decoder_channels": options.decoder_channels,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
