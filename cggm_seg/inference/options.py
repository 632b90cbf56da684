"""Options of an inference: what to segment, which files to write and how to compute."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.runs import DEVICES


@dataclass(frozen=True)
class InferOptions:
    """What to segment and where to.

    Args:
        model: Run folder of a training, whose best checkpoint is used; or several, separated by
            commas, or the folder of a cross-validation: their probabilities are averaged.
        input: Folder of cases, folder of one case, or CSV table with the columns case, flair, t1ce,
            t1, t2 (paths); a case may lack modalities.
        output: Folder of the label maps, <case>.nii.gz, and of summary.csv; the same command again
            goes on where it stopped.
        absent: Modalities to be replaced by zeros in every case, separated by commas.
        labels: Label values to write: brats2021, brats2023, brats-ped, brats2013, brats2024, or
            pairs such as 1=NCR,2=ED,4=ET; those of the training's --labels, or else of the names of
            the cases, where not given.
        strict: Whether a bad case ends the run; otherwise it is left out and listed.
    """

    model: str = field(metadata={"metavar": "RUN"})
    input: Path = field(metadata={"metavar": "PATH"})
    output: Path = field(metadata={"metavar": "DIR"})
    absent: str | None = field(default=None, metadata={"metavar": "A,B"})
    labels: str | None = field(default=None, metadata={"metavar": "SCHEME"})
    strict: bool = False

    @property
    def models(self) -> list[Path]:
        """The folders that ``model`` names; a folder may have a comma in its name."""
        whole = Path(self.model)
        return [whole] if whole.exists() else [Path(part.strip()) for part in self.model.split(",")]

    @property
    def absences(self) -> list[str]:
        """The modalities that ``absent`` names."""
        return [name.strip() for name in (self.absent or "").split(",") if name.strip()]


@dataclass(frozen=True)
class FileOptions:
    """What to write besides label maps.

    Args:
        probabilities: Whether to write class probabilities, probabilities/<case>.nii.gz.
        previews: Whether to draw a picture of each case, previews/<case>.png.
        overwrite: Whether to replace what another network, other settings, other images or somebody
            else made.
    """

    probabilities: bool = False
    previews: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class ComputeOptions:
    """How to compute.

    Args:
        mode: Whole slices, or overlapping windows as MONAI cuts them.
        flips: Whether to average over mirror images of the slices, in four times the time.
        precision: bf16 where the hardware computes it, if auto.
        batch_size: Slices at once, fewer where memory is short; chosen by the device where not
            given.
        device: Where to compute; CUDA if there is one, where not given.
    """

    mode: Literal["whole", "window"] = "whole"
    flips: bool = False
    precision: Literal["auto", "float32", "bf16"] = "auto"
    batch_size: int | None = field(default=None, metadata={"metavar": "N"})
    device: str | None = field(default=None, metadata={"metavar": DEVICES})
