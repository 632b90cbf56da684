"""A BraTS training on several ranks that can equal that of one process, by the package's trainer.

That needs a loss that is a mean over equally many voxels of each slice, cross-entropy without
weights in the place of soft Dice; no dropout, which each rank draws for itself; BatchNorm with
fixed statistics, since on processors each rank takes those of its own slices; and CGGM without its
gate, whose chance depends on the pairs in a rank's part. Statistics are those of all slices before
the training, so that it moves all weights. Optimizer, method, augmentation, loader,
validation and checkpoints are those of brats_train.py, in float64.
"""

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from benchmarks.faults.training.fixed_statistics import fix_statistics
from benchmarks.faults.training.forked_ranks import run_ranks
from benchmarks.faults.training.small_training import import_again
from cggm.balancer import Balancer
from cggm.runs.folder import RunFolder
from cggm.runs.launch import joined
from cggm.runs.loop.seeds import seed_everything
from cggm_seg.data.cache import SliceCache, build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.data.cohort import Cohort, Split, split_cases
from cggm_seg.data.slices import SliceDataset
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.simulation.cohort import simulate_cohort
from cggm_seg.training.assembly import segmentation_session
from cggm_seg.training.balancing import segmentation_balancer, training_slices
from cggm_seg.training.config import (
    BratsBalancerConfig,
    BratsConfig,
    NetworkConfig,
    SgdConfig,
    SliceConfig,
)

BATCH_SIZE = 8
_MODALITIES = ("flair", "t1ce")
_RATE = 1e-5  # without BatchNorm that follows, gradients are a thousand times as large


@dataclass(frozen=True)
class Size:
    """How much there is to train on; one case is held out."""

    cases: int
    slices_per_case: int
    epochs: int

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return (self.cases - 1) * self.slices_per_case // BATCH_SIZE * self.epochs


class _Config(BratsConfig):
    @property
    def processes(self) -> int:
        """As many as are asked for, on any number of cores."""
        return self.workers


class RankTraining:
    """Its data, made once, and the training on any number of ranks and loader workers.

    Args:
        folder: For all files.
        size: How long it is.
    """

    def __init__(self, folder: Path, size: Size) -> None:
        torch.set_num_threads(1)
        set_start_method("fork", force=True)  # as in a command; child.py's process spawns
        self.folder, self._size = folder, size
        self._train_in_forks(world=1, workers=0, size=Size(size.cases, BATCH_SIZE, 1))
        import_again(folder / "modules")

    def train(self, world: int, workers: int) -> list[dict[str, Any]]:
        """What each rank found: the ``items`` of each step, and ``before`` and ``after`` weights.

        Args:
            world: Number of ranks, each a process.
            workers: Loader processes of each.
        """
        return self._train_in_forks(world, workers, self._size)

    def _train_in_forks(self, world: int, workers: int, size: Size) -> list[dict[str, Any]]:
        store = self.folder / f"{world}-{workers}-{size.epochs}"
        store.mkdir()

        def work(number: int) -> None:
            with joined("cpu"):
                found = self._train(store, workers, size)
            torch.save(found, store / f"rank{number}.pt")
            (self.folder / "modules").write_text("\n".join(sys.modules))

        run_ranks(work, world, store)
        return [torch.load(store / f"rank{number}.pt") for number in range(world)]

    def _train(self, store: Path, workers: int, size: Size) -> dict[str, Any]:
        config, run = _config(size, workers), RunFolder(store / "run")
        cache, split = self._cached(config)
        network, balancer = self._models(config, cache, split)
        device = torch.device("cpu")
        cohort = Cohort(self.folder / "cohort", {}, cache, split, [])
        session = segmentation_session(config, run, network, balancer, cohort, device)
        found: dict[str, Any] = {"items": [], "before": _flat(network, balancer)}

        @session.trainer.on(Events.ITERATION_STARTED)
        def note(engine: Engine) -> None:
            found["items"].append(digests(engine.state.batch))  # type: ignore[arg-type]

        session.run()
        return {**found, "after": _flat(network, balancer)}

    def _models(
        self, config: BratsConfig, cache: SliceCache, split: Split
    ) -> tuple[MultiEncoderDeepLabV3Plus, Balancer]:
        seed_everything(config.seed)
        network = config.network.build(config.used)
        slices = self.plain_slices()
        images = torch.stack([slices[0, position]["image"] for position in range(len(slices))])
        fix_statistics(network, images)
        with torch.no_grad():
            features = network.encode(images)
        balancer = segmentation_balancer(config, network, cache, split)
        for name, head in balancer.heads.items():  # type: ignore[operator, union-attr]
            fix_statistics(head, features[name])
        balancer.task_loss = nn.CrossEntropyLoss()
        for encoder in network.encoders.values():
            encoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return network.double(), balancer.double()

    def _cached(self, config: BratsConfig) -> tuple[SliceCache, Split]:
        """The slices, simulated and cached unless they are there."""
        cohort = self.folder / "cohort"
        simulate_cohort(cohort, cases=self._size.cases, shape=(60, 60, 39), progress=False)
        cases = find_cases(cohort, labelled=True)[0]
        cache = build_cache(cases, self.folder / "cache", workers=1, progress=False)[0]
        cache = cache.only(config.used)
        return cache, split_cases(cache.case_ids, config.validation_fraction, config.seed)

    def plain_slices(self) -> SliceDataset:
        """What is trained on, without augmentation."""
        config = _config(self._size, workers=0, augment=False)
        cache, split = self._cached(config)
        return training_slices(config, cache, split.training)


def digests(batch: dict[str, Tensor]) -> list[str]:
    """One of each item of a batch, of its image and its label map."""
    pairs = zip(batch["image"], batch["label"], strict=True)
    return [_digest(pair) for pair in pairs]


def _digest(tensors: Iterable[Tensor]) -> str:
    content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


def _config(size: Size, workers: int, *, augment: bool = True) -> BratsConfig:
    return _Config(
        modalities=_MODALITIES,
        max_epochs=size.epochs,
        batch_size=BATCH_SIZE,
        workers=workers,
        validate_every=size.epochs,
        validation_fraction=1 / size.cases,
        device="cpu",
        network=NetworkConfig(
            "tu-lcnet_050", decoder_channels=16, low_level_channels=8, aspp_dropout=0.0
        ),
        slices=SliceConfig(size=32, per_case=size.slices_per_case, augment=augment),
        optimizer=SgdConfig(
            lr_start=_RATE, lr_peak=_RATE, lr_final=_RATE, head_lr=_RATE, warmup_epochs=1
        ),
        balancer=BratsBalancerConfig(settings={"gate": None}),
    )


def _flat(*models: nn.Module) -> Tensor:
    """All weights, one after another."""
    weights = (parameter for model in models for parameter in model.parameters())
    return torch.cat([weight.detach().flatten() for weight in weights])
