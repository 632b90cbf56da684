"""A folder of predictions, which knows what made each of its files."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cggm.errors import UserError
from cggm.runs.folder import replacing, write_atomically

Writer = Callable[[Path], None]

_DRAFTS = r"(\.tmp-\d+-[0-9a-f]+-)+"  # how the names of half-written files begin


@dataclass(frozen=True)
class Record:
    """What was predicted of one case, and from what.

    Attributes:
        case: Identifier of the case.
        made_with: Network, settings and version, see :func:`cggm_seg.identity.made_with`.
        naming: Scheme of the label map's values.
        inputs: Modality to SHA-256 of its image.
        absent: Modalities of the network that were replaced by zeros.
        volumes_ml: Milliliters of each region.
        seconds: Of reading and segmenting.
        outputs: File, relative to the folder, to its SHA-256.
    """

    case: str
    made_with: Mapping[str, str]
    naming: str
    inputs: Mapping[str, str]
    absent: list[str]
    volumes_ml: Mapping[str, float]
    seconds: float
    outputs: Mapping[str, str]


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
        """Makes the folder, where there is none.

        Raises:
            UserError: If it cannot be made.
        """
        with _said_to_user(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

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

    def read(self, case_id: str) -> Record | None:
        """The record of a case, or ``None`` where there is none that can be read."""
        return _parsed(self._record(case_id))

    def is_ours(self, record: Record | None, file: Path) -> bool:
        """Whether a file is there as its record describes it."""
        name = self.name_of(file)
        return (
            record is not None
            and name in record.outputs
            and (file.is_file() and file_digest(file) == record.outputs[name])
        )

    def write(self, record: Record, writers: Mapping[Path, Writer]) -> None:
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
            _sweep(self.path / name)
            write_atomically(self.path / name, text.encode())

    def _write(self, record: Record, writers: Mapping[Path, Writer]) -> None:
        digests = {}
        with ExitStack() as drafts:
            for file, write in writers.items():
                file.parent.mkdir(exist_ok=True)
                _sweep(file)
                draft = drafts.enter_context(replacing(file))
                write(draft)
                digests[self.name_of(file)] = file_digest(draft)
            values = asdict(record) | {"outputs": digests}
            file = self._record(record.case)
            file.parent.mkdir(exist_ok=True)
            _sweep(file)
            write_atomically(file, (json.dumps(values, indent=2) + "\n").encode())

    def records(self) -> list[Record]:
        """Of every label map that is there as it was made, by identifier."""
        found = (_parsed(file) for file in self.path.glob("records/*.json"))
        made = [r for r in found if r and self.is_ours(r, self.labels(r.case))]
        return sorted(made, key=lambda record: record.case)

    def _record(self, case_id: str) -> Path:
        return self.path / "records" / f"{case_id}.json"


def file_digest(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: If it cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _said_to_user(path: Path) -> Iterator[None]:
    """What the system refuses to write, as an error without a traceback."""
    try:
        yield
    except OSError as error:
        what = f"Expected to write {error.filename or path}, but got: {error.strerror or error}."
        raise UserError(what, "Free space, or choose a folder that you may write to.") from error


def _parsed(file: Path) -> Record | None:
    try:
        return Record(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _sweep(file: Path) -> None:
    """Remove what a killed process left half-written of this file."""
    draft = re.compile(_DRAFTS + re.escape(file.name))
    for other in file.parent.glob(".tmp-*"):
        if draft.fullmatch(other.name):
            other.unlink(missing_ok=True)
