"""Extraction of features: one pass of BERT and ViT over UPMC Food-101, before any training.

Samples are read in shards. Threads decode the images of a shard, the backbones run over it, and the
writer commits it, so that an extraction that was killed loses one shard at most.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cggm.errors import DataError
from cggm.runs import require
from cggm_cls.data.food101.backbones import ImageBackbone, TextBackbone
from cggm_cls.data.food101.images import Pixels, image_views, read_image
from cggm_cls.data.food101.samples import Food101
from cggm_cls.data.food101.store import (
    MANIFEST,
    SPLITS,
    FeatureKey,
    FeatureStore,
    check_key,
    open_features,
)
from cggm_cls.data.food101.variants import FoodRecord
from cggm_cls.data.food101.writer import Features, FeatureWriter

_PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class ExtractionOptions:
    """How features are extracted.

    Args:
        views: Views of each training image, the image itself and random variations; images of
            the other splits have one.
        seed: Of the variations, not negative.
        batch_size: Texts or images per forward pass.
        shard_size: Samples between two commits; a killed extraction loses no more.
        workers: Threads that decode images.
        skip_bad: Whether samples with a bad image are left out, rather than ending the extraction.
        progress: Whether to show a bar with the time left, if there is a terminal.
    """

    views: int = 1
    seed: int = 0
    batch_size: int = 32
    shard_size: int = 256
    workers: int = 2
    skip_bad: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("views", "batch_size", "shard_size", "workers"):
            require(getattr(self, name) >= 1, name, "of at least 1", getattr(self, name))
        require(self.seed >= 0, "seed", "of at least 0", self.seed)


def extract_features(
    data: Food101,
    text: TextBackbone,
    image: ImageBackbone,
    output: Path,
    options: ExtractionOptions | None = None,
) -> FeatureStore:
    """Run the backbones once over all samples, or over those that an earlier extraction left.

    A finished store of the same samples, models and transform is opened as it is. With BERT-base
    and ViT-B/16 a sample of 50 tokens takes 153.6 kB, and 76.8 kB for each further view.

    Args:
        data: The samples, see :func:`~cggm_cls.data.food101.samples.read_food101`.
        text: Gives one vector per token.
        image: Gives one vector per patch.
        output: Folder of the store, absent, empty or of an extraction of the same samples.
        options: Views, sizes of batches and shards; the defaults where ``None``.

    Returns:
        The finished store.

    Raises:
        DataError: If an image is bad, unless bad samples are left out, if a feature is not finite
            in float16, or if a split has no sample left.
        UserError: If the folder holds other files, or features made from something else.
    """
    options = options or ExtractionOptions()
    extraction = _Extraction(data, text, image, options)
    key = extraction.key()
    whole: FeatureKey = {"records": data.digest, **key}
    if (output / MANIFEST).exists():
        return open_features(output, whole)
    _check_missing(data, options)
    writer = FeatureWriter(output, key, {"text": text.width, "image": image.width})
    jobs = extraction.jobs()
    records = hashlib.sha256()
    _add(records, data, jobs[: writer.done])
    # What an earlier extraction finished must still be what the lists say; the rest may be mended.
    check_key(output, {"records": writer.records}, {"records": records.hexdigest()})
    bar = tqdm(
        desc="Extracting",
        total=len(jobs),
        initial=writer.done,
        unit="sample",
        disable=None if options.progress else True,
    )
    with bar, ThreadPoolExecutor(options.workers) as pool:
        for start in range(writer.done, len(jobs), options.shard_size):
            shard = jobs[start : start + options.shard_size]
            images = list(pool.map(extraction.read, shard))
            bad = {error.case: str(error) for error in images if isinstance(error, DataError)}
            _add(records, data, shard)
            writer.commit(
                extraction.features(shard, images),
                samples=len(shard),
                skipped=bad,
                records=records.hexdigest(),
            )
            bar.update(len(shard))
    views = {"text": (1, 1, 1), "image": (options.views, 1, 1)}
    samples = extraction.samples(writer.skipped)
    writer.finish(data.digest, samples, views, extraction.facts())
    return open_features(output, whole)


def _check_missing(data: Food101, options: ExtractionOptions) -> None:
    if data.missing and not options.skip_bad:
        what = f"Expected an image file for every sample, but {len(data.missing)} have none."
        fix = "Restore the files, or leave out bad samples."
        raise DataError(data.missing[0], None, what, fix)


def _add(records: "hashlib._Hash", data: Food101, jobs: Sequence["_Job"]) -> None:
    for job in jobs:
        records.update(data.fingerprint(job.record))


@dataclass(frozen=True)
class _Job:
    """A sample to extract, with the number of its image's views."""

    record: FoodRecord
    views: int


@dataclass(frozen=True)
class _Extraction:
    """The steps of an extraction, which know samples, backbones and options."""

    data: Food101
    text: TextBackbone
    image: ImageBackbone
    options: ExtractionOptions

    def key(self) -> FeatureKey:
        # The seed draws variations of images alone, so without them any seed gives the same.
        seed = self.options.seed if self.options.views > 1 else None
        order = [[record.id for record in self.data.splits[split]] for split in SPLITS]
        return {
            "split": hashlib.sha256(json.dumps(order).encode()).hexdigest(),
            "text_model": self.text.digest,
            "image_model": self.image.digest,
            "transform": {
                **self.text.transform,
                **self.image.transform,
                "views": self.options.views,
                "seed": seed,
            },
        }

    def jobs(self) -> list[_Job]:
        views = dict.fromkeys(SPLITS, 1) | {"train": self.options.views}
        return [_Job(r, views[split]) for split in SPLITS for r in self.data.splits[split]]

    def read(self, job: _Job) -> Pixels | DataError:
        """The views of a sample's image, or what is wrong with it."""
        record = job.record
        try:
            image = read_image(self.data.image_file(record), record.id)
        except DataError as error:
            if not self.options.skip_bad:
                raise
            return error
        size, resample = self.image.size, self.image.resample
        seed = self.options.seed
        return image_views(
            image, record.id, size=size, resample=resample, views=job.views, seed=seed
        )

    def features(
        self, shard: Sequence[_Job], images: Sequence[Pixels | DataError]
    ) -> dict[str, list[Features]]:
        """Sequences of each modality, those of bad images left out."""
        good = [
            (job.record, views)
            for job, views in zip(shard, images, strict=True)
            if not isinstance(views, DataError)
        ]
        records = [record for record, _ in good]
        owners = [record for record, views in good for _ in views]
        shown = [view for _, views in good for view in views]
        return {
            "text": self._encode([r.text for r in records], self.text.encode, records),
            "image": self._encode(shown, self.image.encode, owners),
        }

    def samples(self, skipped: Mapping[str, str]) -> dict[str, dict[str, list[Any]]]:
        """Identifiers and labels of the samples that were not left out."""
        number = {name: index for index, name in enumerate(self.data.classes)}
        samples: dict[str, dict[str, list[Any]]] = {}
        for split in SPLITS:
            kept = [record for record in self.data.splits[split] if record.id not in skipped]
            if not kept:
                what = f"Expected samples in the {split} split, but all of them are bad."
                raise DataError(str(self.data.root), None, what, "Restore their images.")
            labels = [number[record.label] for record in kept]
            samples[split] = {"ids": [record.id for record in kept], "labels": labels}
        return samples

    def facts(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        return {
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "simulated": self.data.simulated or self.text.simulated or self.image.simulated,
            "classes": self.data.classes,
            "notes": self.data.notes,
            "versions": {"python": platform.python_version(), **versions},
        }

    def _encode(
        self,
        items: Sequence[Any],
        encode: Callable[[Sequence[Any]], Sequence[Tensor]],
        owners: Sequence[FoodRecord],
    ) -> list[Features]:
        features: list[Features] = []
        for start in range(0, len(items), self.options.batch_size):
            for states in encode(items[start : start + self.options.batch_size]):
                features.append(_half(states, owners[len(features)]))
        return features


def _half(states: Tensor, record: FoodRecord) -> Features:
    """Features as float16, whose range of 65504 those of BERT and ViT do not come near."""
    half = states.half()
    if not torch.isfinite(half).all():
        largest = states.abs().max().item()
        what = f"Expected features within float16, but the largest is {largest:g}."
        raise DataError(record.id, None, what, "Use another backbone.")
    features: Features = half.numpy()
    return features
