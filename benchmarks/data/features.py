"""Reading a random batch of 128 features, against running BERT-base and ViT-B/16 on it.

    python -m benchmarks.data.features [--json FILE]

One thread. The backbones have the true shapes and random weights, which does not change their
speed; they get 50 tokens and a decoded image of 224 x 224 per sample, and are timed on 16 samples,
of which 128 take eight times as long. The store has samples of true size and is read from the page
cache. Every figure is the median of its rounds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel
from transformers.utils import logging

from benchmarks.machine import machine
from cggm_cls.data.food101.backbones import ImageBackbone, TextBackbone
from cggm_cls.data.food101.store import open_features
from cggm_cls.data.food101.writer import FeatureWriter
from cggm_cls.data.sequences import SequenceDataset

ROUNDS, READS = 3, 10
SAMPLES, BATCH, TIMED = 2048, 128, 16
STEPS, WIDTH = 50, 768
REFERENCE = {"text": 76_800, "image": 76_800}  # bytes per sample: 50 x 768 float16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    rows = compare(figures)
    print_table(figures, rows)
    if options.json:
        result = {
            "machine": machine("torch", "transformers", "numpy"),
            "figures": figures,
            "targets": rows,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path) -> dict[str, Any]:
    """Seconds per batch of 128 from the store and by the backbones, and bytes per sample."""
    write_store(folder / "store")
    write_backbones(folder)
    text, image = TextBackbone(folder / "bert"), ImageBackbone(folder / "vit")
    check_shapes(text, image)
    train = open_features(folder / "store").task_data(seed=0).train
    reads, runs = [], []
    for number in range(ROUNDS):
        rng = np.random.default_rng(number)
        reads += [time_of(lambda: read(train, rng)) for _ in range(READS)]  # noqa: B023
        runs.append(time_of(lambda: run(text, image, TIMED)) * BATCH / TIMED)
    sizes = {name: (folder / "store" / f"{name}.values.bin").stat().st_size for name in REFERENCE}
    return {
        "batch": BATCH,
        "samples_timed": {"store": BATCH, "backbones": TIMED},
        "seconds_per_batch": {"store": median(reads), "backbones": median(runs)},
        "rounds": {"store": reads, "backbones": runs},
        "seconds_per_sample": {
            "store": median(reads) / BATCH,
            "backbones": median(runs) / BATCH,
        },
        "store_samples": SAMPLES,
        "bytes_per_sample": {name: size / SAMPLES for name, size in sizes.items()},
    }


def read(train: SequenceDataset, rng: np.random.Generator) -> None:
    train.batch(rng.choice(len(train), BATCH, replace=False).tolist(), epoch=0)


def run(text: TextBackbone, image: ImageBackbone, samples: int) -> tuple[Any, Any]:
    texts = ["word " * STEPS] * samples
    images = [*np.random.default_rng(0).integers(0, 256, (samples, 224, 224, 3), np.uint8)]
    return text.encode(texts), image.encode(images)


def time_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def check_shapes(text: TextBackbone, image: ImageBackbone) -> None:
    """A ratio of speeds counts only if both sides give features of the same shape."""
    for [states] in run(text, image, 1):
        assert states.shape == (STEPS, WIDTH)


def write_store(folder: Path) -> None:
    rng = np.random.default_rng(0)
    writer = FeatureWriter(folder, {}, dict.fromkeys(REFERENCE, WIDTH))
    for _ in range(0, SAMPLES, BATCH):
        values = rng.standard_normal((2, BATCH, STEPS, WIDTH), np.float32).astype(np.float16)
        shard = dict(zip(REFERENCE, map(list, values), strict=True))
        writer.commit(shard, samples=BATCH, skipped={}, records="")
    ids = [str(number) for number in range(SAMPLES)]
    parts = {"train": ids[:-2], "valid": ids[-2:-1], "test": ids[-1:]}
    samples = {split: {"ids": part, "labels": [0] * len(part)} for split, part in parts.items()}
    facts = {"simulated": True, "classes": ["none"], "notes": []}
    writer.finish("", samples, dict.fromkeys(REFERENCE, (1, 1, 1)), facts)


def write_backbones(folder: Path) -> None:
    logging.disable_progress_bar()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder / "bert")
    BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder / "bert")
    ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(folder / "vit")
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))


def compare(figures: dict[str, Any]) -> list[dict[str, Any]]:
    seconds, sizes = figures["seconds_per_batch"], figures["bytes_per_sample"]
    speed = seconds["backbones"] / seconds["store"]
    rows = [("speed over the backbones", speed, ">= 1000", speed >= 1000)]
    rows += [
        (f"{name}, bytes per sample", sizes[name], f"= {expected}", sizes[name] == expected)
        for name, expected in REFERENCE.items()
    ]
    names = ("what", "value", "target", "reached")
    return [dict(zip(names, row, strict=True)) for row in rows]


def print_table(figures: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for name, seconds in figures["seconds_per_batch"].items():
        print(f"{name:40s}{seconds * 1e3:14.1f} ms per batch of {BATCH}")
    print(f"\n{'':40s}{'measured':>14s}{'target':>14s}")
    for row in rows:
        verdict = "" if row["reached"] else "  missed"
        print(f"{row['what']:40s}{row['value']:14.0f}{row['target']:>14s}{verdict}")


if __name__ == "__main__":
    main()
