"""Folder of predictions, which knows what made each of its files."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from cggm import __version__
from cggm.errors import DataError, UserError
from cggm.runs import (
    NUMBER,
    check_form,
    file_digest,
    parse_json,
    replacing,
    sweep_drafts,
    write_atomically,
    write_json,
)
from cggm_seg.data import Case
from cggm_seg.inference.slices import InferenceSettings, device_of


def made_with(network: nn.Module, settings: InferenceSettings) -> dict[str, str]:
    """The network, the settings and the version of this package.

    The batch size and the device are no part of it: they change rounding alone. The precision that
    the device computes in is.
    """
    values = {
        "version": __version__,
        "network": network_digest(network),
        "mode": settings.mode,
        "flips": str(settings.flips),
        "crop_to_brain": str(settings.crop_to_brain),
        "precision": "bf16" if settings.in_bf16(device_of(network)) else "float32",
    }
    if settings.mode == "window":
        values |= {"window": str(settings.window), "overlap": str(settings.overlap)}
    return values


def network_digest(network: nn.Module) -> str:
    """SHA-256 of the weights, and of the structure: modules with their strings and numbers.

    Private ones are PyTorch's own and may change with its version.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        digest.update(repr((name, type(module).__qualname__, _plain(vars(module)))).encode())
    for name, tensor in network.state_dict().items():
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(values: Mapping[str, object]) -> list[tuple[str, object]]:
    kept = {k: v for k, v in values.items() if isinstance(v, str | int | float | tuple)}
    return sorted((k, v) for k, v in kept.items() if k != "training" and not k.startswith("_"))


Writer = Callable[[Path], None]


@dataclass(frozen=True)
class PredictionRecord:
    """What was predicted of one case, and from what.

    Attributes:
        case: Identifier of the case.
        made_with: Network, settings and version, see :func:`cggm_seg.inference.folder.made_with`.
        naming: Label scheme of the file's values, see ``label_scheme``.
        inputs: Modality to SHA-256 of its image.
        absent: Modalities of the network that were replaced by zeros.
        volumes_ml: Milliliters of each region.
        seconds: Of reading and segmenting.
        outputs: File, relative to the folder, to its SHA-256.
        learned_from: Names of the trainings that the case was in.
    """

    case: str
    made_with: Mapping[str, str]
    naming: str
    inputs: Mapping[str, str]
    absent: list[str]
    volumes_ml: Mapping[str, float]
    seconds: float
    outputs: Mapping[str, str]
    learned_from: list[str] = field(default_factory=list)  # not in older records


class PredictionFolder:
    """Label maps of many cases, and beside them probabilities, previews and records.

    A record is written just before its files appear and has their digests: a file that its record
    does not know was put there by somebody else, and one that is missing was not finished. The
    first file of a case, its label map, is the last to appear.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Makes the folder, where there is none, and takes away what killed processes left there.

        Raises:
            UserError: If it cannot be made.
        """
        with _said_to_user(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        for folder in ("", "probabilities", "previews", "records"):
            sweep_drafts(self.path / folder)

    def labels(self, case_id: str) -> Path:
        """The label map of a case."""
        return self.path / f"{case_id}.nii.gz"

    def probabilities(self, case_id: str) -> Path:
        """The class probabilities of a case."""
        return self.path / "probabilities" / f"{case_id}.nii.gz"

    def preview(self, case_id: str) -> Path:
        """The picture of a case."""
        return self.path / "previews" / f"{case_id}.png"

    def name_of(self, file: Path) -> str:
        """A file of the folder as records name it."""
        return file.relative_to(self.path).as_posix()

    def read(self, case_id: str) -> PredictionRecord | None:
        """The record of a case, or ``None`` where there is none that can be read."""
        return _parsed(self._record(case_id))

    def is_ours(self, record: PredictionRecord | None, file: Path) -> bool:
        """Whether a file is there as its record describes it."""
        name = self.name_of(file)
        return (
            record is not None
            and name in record.outputs
            and (file.is_file() and file_digest(file) == record.outputs[name])
        )

    def write(self, record: PredictionRecord, writers: Mapping[Path, Writer]) -> None:
        """Writes all files of a case, or none, and its record with their digests.

        Args:
            record: Whose ``outputs`` are replaced.
            writers: File to what writes it.

        Raises:
            UserError: If a file cannot be written; the earlier ones are untouched then.
        """
        with _said_to_user(self.labels(record.case)):
            self._write(record, writers)

    def write_table(self, name: str, text: str) -> None:
        """Writes a text file of the folder, replacing it in one step.

        Raises:
            UserError: If it cannot be written; the earlier one is untouched then.
        """
        with _said_to_user(self.path / name):
            write_atomically(self.path / name, text.encode())

    def _write(self, record: PredictionRecord, writers: Mapping[Path, Writer]) -> None:
        digests = {}
        with ExitStack() as drafts:
            for file, write in writers.items():
                file.parent.mkdir(exist_ok=True)
                draft = drafts.enter_context(replacing(file, swept=True))
                write(draft)
                digests[self.name_of(file)] = file_digest(draft)
            values = asdict(record) | {"outputs": digests}
            file = self._record(record.case)
            file.parent.mkdir(exist_ok=True)
            with replacing(file, swept=True) as draft:
                write_json(draft, values)

    def records(self) -> list[PredictionRecord]:
        """Of every label map that is there as it was made, by identifier."""
        found = (_parsed(file) for file in self.path.glob("records/*.json"))
        made = [r for r in found if r and self.is_ours(r, self.labels(r.case))]
        return sorted(made, key=lambda record: record.case)

    def _record(self, case_id: str) -> Path:
        return self.path / "records" / f"{case_id}.json"


@contextmanager
def _said_to_user(path: Path) -> Iterator[None]:
    """What the system refuses to write, as an error without a traceback."""
    try:
        yield
    except OSError as error:
        what = f"Expected to write {error.filename or path}, but got: {error.strerror or error}."
        raise UserError(what, "Free space, or choose a folder that you may write to.") from error


_RECORD = {
    "case": str,
    "made_with": {"*": str},
    "naming": str,
    "inputs": {"*": str},
    "absent": [str],
    "volumes_ml": {"*": NUMBER},
    "seconds": NUMBER,
    "outputs": {"*": str},
    "learned_from?": [str],
}


def _parsed(file: Path) -> PredictionRecord | None:
    try:
        values = parse_json(file.read_bytes())
        # Label schemes were known by the year of the file names before they had names of their own.
        old = {"2021": "brats2021", "2023": "brats2023"}
        check_form(values, _RECORD, file)
        return PredictionRecord(**{**values, "naming": old.get(values["naming"], values["naming"])})
    except (OSError, ValueError, TypeError, UserError):
        return None


def check_one_origin(
    folder: PredictionFolder, cases: Sequence[Case], made_with: Mapping[str, str]
) -> None:
    """Refuse to predict some cases otherwise than others.

    Args:
        folder: With earlier predictions.
        cases: What is to be predicted.
        made_with: See :func:`cggm_seg.inference.folder.made_with`.

    Raises:
        UserError: If the label map of a case is there, by another network or other settings.
    """
    records = [record for case in cases if (record := folder.read(case.id))]
    others = [
        record
        for record in records
        if record.made_with != made_with and folder.is_ours(record, folder.labels(record.case))
    ]
    if others:
        theirs = others[0].made_with
        keys = dict.fromkeys([*made_with, *theirs])
        names = ", ".join(key for key in keys if made_with.get(key) != theirs.get(key))
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise UserError(
            f"{folder.path}: expected predictions by this network and with these settings, but "
            f"that of {others[0].case}{more} was made with another {names}.",
            "Choose another --output, or replace them with --overwrite.",
        )


def check_replaceable(
    folder: PredictionFolder, case_id: str, files: Sequence[Path], record: PredictionRecord | None
) -> None:
    """Refuse to replace what is not the same prediction, left unfinished.

    Args:
        folder: With earlier predictions.
        case_id: The case.
        files: What is to be written.
        record: Of an earlier prediction by the same network, settings and images, if any.

    Raises:
        DataError: If one of the files is there and the record does not know it.
    """
    for file in files:
        if file.exists() and not folder.is_ours(record, file):
            ours = folder.is_ours(folder.read(case_id), file)
            made = "it is there, made from other images" if ours else "the file exists"
            what = f"Expected no prediction yet, but {made}."
            fix = "Remove it, allow overwriting or choose another folder."
            raise DataError(case_id, file, what, fix)
