"""Trained networks: of one run, or of several as an ensemble, and what each has learned from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cggm.errors import UserError
from cggm.runs import RunFolder, load_network_weights, read_config, read_json
from cggm_seg.data import Case
from cggm_seg.networks import Ensemble
from cggm_seg.training.config import BratsConfig


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with the weights of the best checkpoint of a run, or an ensemble of such.

    Attributes:
        network: On the processor; it names its channels in ``modalities``.
        config: Configuration of the run, the first one of several.
        runs: Where it comes from.
    """

    network: nn.Module
    config: BratsConfig
    runs: tuple[RunFolder, ...]

    @classmethod
    def load(cls, runs: Sequence[RunFolder]) -> "TrainedNetwork":
        """Read what some runs left; probabilities of several are averaged.

        Args:
            runs: At least one.

        Raises:
            UserError: If one has no checkpoint or is named twice, or they do not fit together.
        """
        twice = [run.path for k, run in enumerate(runs) if run in runs[:k]]
        if twice:
            what = f"{twice[0]}: expected every run once, but it is named twice."
            raise UserError(what, "Name it once: it would count double.")
        configs = [read_config(BratsConfig, [run.config]) for run in runs]
        first = configs[0]
        for run, config in zip(runs, configs, strict=True):
            if (config.used, config.labels) != (first.used, first.labels):
                what = (
                    f"{run.path}: expected a run with the modalities and the --labels of "
                    f"{runs[0].path} ({', '.join(first.used)}), but it has others "
                    f"({', '.join(config.used)})."
                )
                raise UserError(what, "Leave it out of --model.")
        networks: list[nn.Module] = []
        for run, config in zip(runs, configs, strict=True):
            network = config.network.build(config.used, pretrained=False)
            load_network_weights(run.checkpoints, network)
            networks.append(network)
        whole = networks[0] if len(networks) == 1 else Ensemble(networks)
        return cls(whole, first, tuple(runs))

    def learned_from(self, cases: Sequence[Case]) -> dict[str, list[str]]:
        """Which of some cases were in the training of which run.

        A case was if it has the identifier of a training case and lies in the folder of the
        training's data; where that folder is gone, the identifier decides.

        Args:
            cases: What is to be predicted.

        Returns:
            Case to names of runs; cases that are new to all of them are left out.
        """
        seen: dict[str, list[str]] = {}
        for run in self.runs:
            data = read_config(BratsConfig, [run.config]).data
            record = read_json(run.split, missing_ok=True)
            for case in cases:
                if case.id in record.get("training", []) and _lies_in(case, data):
                    seen.setdefault(case.id, []).append(run.path.resolve().name)
        return seen


def _lies_in(case: Case, data: Path | None) -> bool:
    if data is None or not data.is_dir():
        return True
    folder = data.resolve()
    return any(file.resolve().is_relative_to(folder) for file in case.images.values())
