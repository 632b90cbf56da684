"""Demo data for Food-101: a simulated data set in its real layout, and tiny random backbones.

Numbers measured on it say nothing about food, recipes or photographs.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from cggm_cls.data.food101.samples import read_food101
from cggm_cls.data.food101.store import MANIFEST, open_features
from cggm_cls.data.food101.variants import FoodRecord
from cggm_cls.data.simulated import mark_simulated, simulated_folder

Variant = Literal["json", "jsonl", "csv"]

CLASSES = (
    "apple_pie",
    "beef_tartare",
    "caesar_salad",
    "donuts",
    "fish_and_chips",
    "guacamole",
    "hot_dog",
    "miso_soup",
    "pancakes",
    "waffles",
)

_TEXT_INFORMATION = 0.85  # probability that the words are of the sample's own class
_IMAGE_INFORMATION = 0.6
_IMAGE_STRENGTH = 25  # gray levels between classes; pixels have a noise of 50
_COMMON = ("add", "stir", "cup", "bake", "salt", "mix", "pan", "minutes", "fresh", "large")
_OWN_WORDS = 4  # words that only one class uses
_VERSION = 1  # of the generator: to be raised whenever the same seed gives other files
_SIDE = 48  # pixels of an image


def simulate_food101(
    root: Path,
    *,
    train: int = 300,
    test: int = 100,
    seed: int = 0,
    variant: Variant = "json",
) -> None:
    """Write a data set whose text is dominant and whose image is weak.

    A text has words of its class, or with probability 0.15 those of another. An image has the
    color of its class under noise, or with probability 0.4 that of another. A folder that already
    holds the same data set is left as it is.

    Args:
        root: Made if missing; else empty or simulated from the same settings.
        train: Training samples, equally many of each class.
        test: Test samples, likewise.
        seed: Of everything random, not negative.
        variant: How the samples are listed.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    settings = {
        "content": "SIMULATED texts and images, no recipes or photos",
        "generator": _VERSION,
        "train": train,
        "test": test,
        "seed": seed,
        "variant": variant,
    }
    with simulated_folder(root, settings) as scratch:
        if scratch is None:
            return
        for number, (split, count) in enumerate((("train", train), ("test", test))):
            rng = np.random.default_rng([seed, number])
            labels = rng.permutation(np.arange(count) % len(CLASSES))
            records = _simulate_records(rng, split, labels)
            _write_images(scratch, records, labels, rng)
            _WRITERS[variant](scratch, split, records)


def simulate_backbones(folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write a BERT and a ViT with RANDOM weights, in the format of real ones.

    They have two layers of width 32; the BERT knows the words of :func:`simulate_food101`, the
    ViT sees images of 32 x 32.

    Args:
        folder: Made if missing; else empty or simulated from the same settings.
        seed: Of the weights.

    Returns:
        Folder of the BERT and folder of the ViT.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    settings = {"generator": _VERSION, "seed": seed, "content": "RANDOM weights, nothing trained"}
    with simulated_folder(folder, settings) as scratch:
        if scratch is not None:
            _save_backbones(scratch / "bert", scratch / "vit", seed)
            for name in ("bert", "vit"):
                mark_simulated(scratch / name, settings)
    return folder / "bert", folder / "vit"


def simulate_features(folder: Path, *, views: int = 1) -> Path:
    """Features of the simulated data set by the random backbones, all of which are made if missing.

    Args:
        folder: Where data set, backbones and features go.
        views: Views of each training image.

    Returns:
        Folder of the features.

    Raises:
        UserError: If a folder holds anything else, or cannot be written.
    """
    from cggm_cls.data.food101.backbones import ImageBackbone, TextBackbone
    from cggm_cls.data.food101.extraction import ExtractionOptions, extract_features

    simulate_food101(folder / "data")
    data = read_food101(folder / "data")
    output = folder / f"features-{views}"
    if (output / MANIFEST).exists():
        open_features(output, {"records": data.digest})
        return output
    bert, vit = simulate_backbones(folder / "backbones")
    options = ExtractionOptions(views=views)
    extract_features(data, TextBackbone(bert), ImageBackbone(vit), output, options)
    return output


def _simulate_records(rng: np.random.Generator, split: str, labels: np.ndarray) -> list[FoodRecord]:
    shown = np.where(rng.random(len(labels)) < _TEXT_INFORMATION, labels, rng.permutation(labels))
    records = []
    for number, (label, evidence) in enumerate(zip(labels, shown, strict=True)):
        name = f"{CLASSES[label]}_{split}_{number}"
        words = [*rng.choice(_own_words(evidence), 3), *rng.choice(_COMMON, rng.integers(3, 9))]
        image = f"images/{split}/{CLASSES[label]}/{name}.jpg"
        records.append(FoodRecord(name, " ".join(rng.permutation(words)), image, CLASSES[label]))
    return records


def _own_words(label: int) -> list[str]:
    return [f"{CLASSES[label].split('_')[0]}{letter}" for letter in "abcd"[:_OWN_WORDS]]


def _write_images(
    root: Path, records: Sequence[FoodRecord], labels: np.ndarray, rng: np.random.Generator
) -> None:
    shown = np.where(rng.random(len(labels)) < _IMAGE_INFORMATION, labels, rng.permutation(labels))
    colors = np.random.default_rng(0).standard_normal((len(CLASSES), 3)) * _IMAGE_STRENGTH
    for record, evidence in zip(records, shown, strict=True):
        pixels = 128 + colors[evidence] + 50 * rng.standard_normal((_SIDE, _SIDE, 3))
        file = root / record.image
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def _write_json(root: Path, split: str, records: Sequence[FoodRecord]) -> None:
    rows = [
        {"id": r.id, "label": r.label, "text_tokens": r.text.split(), "img_path": r.image}
        for r in records
    ]
    (root / f"{split}.json").write_text(json.dumps(rows))


def _write_jsonl(root: Path, split: str, records: Sequence[FoodRecord]) -> None:
    rows = [{"id": r.id, "label": r.label, "text": r.text, "img": r.image} for r in records]
    (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_csv(root: Path, split: str, records: Sequence[FoodRecord]) -> None:
    file = root / "texts" / f"{split}_titles.csv"
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows((f"{r.id}.jpg", r.text, r.label) for r in records)


_WRITERS: dict[Variant, Callable[[Path, str, Sequence[FoodRecord]], None]] = {
    "json": _write_json,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}


def _save_backbones(bert: Path, vit: Path, seed: int) -> None:
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        ViTConfig,
        ViTModel,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    own = [word for label in range(len(CLASSES)) for word in _own_words(label)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_COMMON, *own]
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
        BertModel(text, add_pooling_layer=False).save_pretrained(bert)
        image = ViTConfig(image_size=32, patch_size=8, **sizes)
        ViTModel(image, add_pooling_layer=False).save_pretrained(vit)
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(bert)
    processor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor |= {"resample": 2, "size": {"height": 32, "width": 32}}
    (vit / "preprocessor_config.json").write_text(json.dumps(processor))
