"""What the disk fails under: a training that saves every step, and a prediction of some cases."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.faults.processes.forked import forked
from benchmarks.faults.training.small_training import (
    SmallTraining,
    checkpoints_are_whole,
    hidden,
    import_again,
)
from cggm.runs.checkpoints import RunProgress, save_checkpoint
from cggm.runs.cli import run
from cggm.runs.config import read_config, write_config
from cggm.runs.folder import RunFolder
from cggm_seg.simulation.cohort import simulate_cohort
from cggm_seg.training.config import BratsConfig
from pipelines import brats_infer

_CONFIG = {
    "max_epochs": 1,
    "batch_size": 4,
    "workers": 0,
    "validate_every": 1,
    "slices": {"size": 32, "per_case": 2},
    "optimizer": {"lr_peak": 0.05, "warmup_epochs": 1},
    "device": "cpu",
    "network": {
        "encoder_name": "tu-lcnet_050",
        "decoder_channels": 16,
        "low_level_channels": 8,
    },
}


def untrained_run(folder: Path, **options: object) -> None:
    """Make the folder of a run with a checkpoint.

    Args:
        folder: The folder.
        **options: Of its configuration, other than those of small networks here.
    """
    config = folder.with_suffix(".yaml")
    config.write_text(json.dumps(_CONFIG | options))
    settings = read_config(BratsConfig, [config])
    model = RunFolder.create(folder, name="untrained")
    write_config(settings, model.config)
    save_checkpoint(model.checkpoints, settings.network.build(), {}, RunProgress(1, 1))


class Saving:
    """The training of small_training.py.

    Args:
        folder: For all files.

    Attributes:
        seconds: Of an undisturbed run.
        smallest: Bytes of its smallest file of weights.
    """

    def __init__(self, folder: Path) -> None:
        self._training = SmallTraining(folder)
        self.folder, self.seconds = folder, self._training.seconds
        weights = self._training.whole.glob("checkpoints/*/model.safetensors")
        self.smallest = min(file.stat().st_size for file in weights)

    def disturbed(self, run_folder: Path, disturb: Callable[[], None]) -> tuple[int, str]:
        """Exit code and message of a run that is disturbed."""

        def work() -> int:
            disturb()
            return self._training.train(run_folder)

        code = forked(work, self._training.log)
        return code, self._training.log.read_text()

    def is_whole(self, run_folder: Path) -> bool:
        """Whether every checkpoint that is there is what was written."""
        return checkpoints_are_whole(run_folder)

    def leaves(self, run_folder: Path) -> bool:
        """Whether there are drafts or temporary files."""
        return bool(hidden(run_folder))

    def goes_on(self, run_folder: Path) -> bool:
        """Whether the run, resumed, ends as the undisturbed one."""
        code = forked(lambda: self._training.train(run_folder), self._training.log)
        return code == 0 and self._training.equals_whole(run_folder)


class Predicting:
    """Label maps of some cases by an untrained network.

    Args:
        folder: For all files.
        quick: Whether there are few cases.

    Attributes:
        seconds: Of an undisturbed prediction.
        smallest: Bytes of its smallest label map.
    """

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self._log = folder / "predictions", folder / "log.txt"
        self.folder.mkdir()
        self._cases, self._model = folder / "cohort", folder / "model"
        self._count = 2 if quick else 6
        assert forked(self._first_run, self._log) == 0, self._log.read_text()
        import_again(folder / "modules")
        start = perf_counter()
        whole = folder / "whole-predictions"
        assert forked(lambda: self._predict(whole), self._log) == 0, self._log.read_text()
        self.seconds, self._whole = perf_counter() - start, _digests(whole)
        self.smallest = min(file.stat().st_size for file in whole.glob("*.nii.gz"))

    def _first_run(self) -> None:
        count = self._count
        simulate_cohort(self._cases, cases=count, shape=(60, 60, 39), progress=False)
        untrained_run(self._model)
        self._predict(self._model / "first")
        (self.folder.parent / "modules").write_text("\n".join(sys.modules))

    def _predict(self, output: Path) -> int:
        paths = ("--model", self._model, "--input", self._cases, "--output", output)
        return run(brats_infer.main, [*map(str, paths), "--overwrite", "true", "--device", "cpu"])

    def disturbed(self, output: Path, disturb: Callable[[], None]) -> tuple[int, str]:
        """Exit code and message of a prediction that is disturbed."""

        def work() -> int:
            disturb()
            return self._predict(output)

        code = forked(work, self._log)
        return code, self._log.read_text()

    def is_whole(self, output: Path) -> bool:
        """Whether every label map that is there is that of the undisturbed prediction."""
        return _digests(output).items() <= self._whole.items()

    def leaves(self, output: Path) -> bool:
        """Whether there are temporary files."""
        return output.exists() and bool(hidden(output))

    def goes_on(self, output: Path) -> bool:
        """Whether another prediction there ends as the undisturbed one."""
        return forked(lambda: self._predict(output), self._log) == 0 and (
            _digests(output) == self._whole
        )


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("[!.]*.nii.gz"))  # summary.csv tells the time as well
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
