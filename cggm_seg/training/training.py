"""One BraTS training from its data folder to its report, and several for a cross-validation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from cggm.balancer import Balancer
from cggm.distributed import is_first_rank
from cggm.runs import Repeat, RunFolder, Session, report_problems, run_repeats, seed_everything
from cggm_seg.data import Cohort, open_cohort
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.training.assembly import segmentation_session
from cggm_seg.training.balancing import check_complete, segmentation_balancer
from cggm_seg.training.config import BratsConfig
from cggm_seg.training.summary import announce_segmentation, conclude_segmentation


@dataclass(frozen=True)
class SegmentationTraining:
    """A training that is assembled and has written nothing yet, see :func:`prepare_training`.

    Attributes:
        config: The configuration.
        network: The network, on its device.
        cohort: The cases.
        balancer: The method, bound to the network.
        session: What trains, in the folder of the run.
    """

    config: BratsConfig
    network: MultiEncoderDeepLabV3Plus
    cohort: Cohort
    balancer: Balancer
    session: Session

    def run(self) -> None:
        """Train, evaluate the best checkpoint, write the report, and list the cases left out."""
        config, network, cohort, session = self.config, self.network, self.cohort, self.session
        session.prepare_folder()
        if is_first_rank():
            announce_segmentation(config, session.folder, network, cohort, done=session.done)
        session.run()
        if is_first_rank():
            conclude_segmentation(config, session, network, self.balancer, cohort)
            report_problems(cohort.problems)


def prepare_training(
    config: BratsConfig, folder: RunFolder, data: Path, device: torch.device
) -> SegmentationTraining:
    """Opens the cohort and builds network, method and session, which must all fit.

    Args:
        config: The configuration.
        folder: Of the run; where it holds checkpoints, the training goes on from the last one.
        data: Folder of the cases.
        device: Where to compute.

    Raises:
        UserError: If data, network or method do not fit; nothing of the run is written then.
    """
    seed_everything(config.seed)
    resumed = folder.config.exists()
    network = config.network.build(config.used, pretrained=not resumed).to(device)
    cohort = open_cohort(data, config)
    if config.gradients:
        check_complete(cohort.cache, cohort.split, "--gradients")
    balancer = segmentation_balancer(config, network, cohort.cache, cohort.split)
    if type(balancer) is not Balancer and not balancer.serves_absence:
        method = f"{config.balancer.name}, which cannot leave a modality out"
        check_complete(cohort.cache, cohort.split, method)
    session = segmentation_session(config, folder, network, balancer, cohort, device)
    return SegmentationTraining(config, network, cohort, balancer, session)


def train_or_cross_validate(
    config: BratsConfig, folder: RunFolder, data: Path, device: torch.device
) -> None:
    """Trains once or, where folds are asked for and none of them is named, once for each fold.

    Args:
        config: The configuration.
        folder: Of the run, or of the runs ``fold-1`` and so on with their ``summary.json``.
        data: Folder of the cases.
        device: Where to compute.

    Raises:
        UserError: If data, network or method do not fit.
    """
    prepare: Callable[[BratsConfig, RunFolder], SegmentationTraining]
    prepare = partial(prepare_training, data=data, device=device)
    if config.folds is None or config.fold is not None:
        prepare(config, folder).run()
        return
    numbers = range(1, config.folds + 1)
    folds = [Repeat(f"fold-{number}", replace(config, fold=number)) for number in numbers]
    run_repeats(folder, config, folds, prepare)
