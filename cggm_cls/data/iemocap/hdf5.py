"""Arrays of an HDF5 file that nobody vouches for, read within bounds.

What is declared is checked before anything is read: links that may leave the file, virtual and
external storage, types other than floats, sizes that would exhaust the memory, and compression,
which libhdf5 undoes without a limit (1 MB can become 1 GB), are refused. The structure of the file
itself is parsed by libhdf5, against whose own errors nothing guards.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cggm.errors import DataError

MOST_STEPS = 10_000
"""Longest first axis that a genuine array may declare; a thousand seconds of audio features."""

_MOST_CHUNK_BYTES = 2**26  # libhdf5 reads whole chunks, however little is asked for
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises
_FIX = "Copy or download the file again."


class ArrayFile:
    """Arrays of one file; made by :func:`open_arrays`.

    Args:
        file: Where they lie.
        root: The open ``h5py.File``.
    """

    def __init__(self, file: Path, root: Any) -> None:  # noqa: ANN401
        self.file = file
        self._root = root

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the names that the file does not hold at its top.

        Args:
            names: Of groups or arrays.

        Raises:
            DataError: If the file is damaged.
        """
        try:
            # Iterating reads names alone, whereas `name in root` follows links out of the file.
            held = set(self._root)
        except _BROKEN as error:
            raise self._error("/", f"Expected a list of arrays, but got: {error}.", _FIX) from error
        return [name for name in names if name not in held]

    def read(
        self, path: Sequence[str], *, width: int, steps: int | None
    ) -> tuple[NDArray[np.float32], int]:
        """One array, as float32; values too large for it become infinite.

        Args:
            path: Names of the groups and the array, from the top.
            width: Length that the last axis must have.
            steps: How much of the first of two axes to read at most; one axis where ``None``.

        Returns:
            The values, ``(T, width)`` or ``(width,)``, and the declared length of the first axis.

        Raises:
            DataError: If the array is missing, unsafe, of another type or shape, or damaged.
        """
        name = "/".join(path)
        try:
            dataset = self._find(path)
            self._check(name, dataset, width, ndim=1 if steps is None else 2)
            with np.errstate(over="ignore"):
                values = dataset[:steps].astype(np.float32, copy=False)
            return values, dataset.shape[0]
        except _BROKEN as error:
            raise self._error(name, f"Expected an array, but got: {error}.", _FIX) from error

    def _find(self, path: Sequence[str]) -> Any:  # noqa: ANN401
        """The array at the end of a path of hard links, each a member of the group before."""
        import h5py

        node = self._root
        for name in path:
            if not isinstance(node, h5py.Group) or "/" in name or name in ("", "."):
                raise self._error("/".join(path), "Expected an array, but found none.", _FIX)
            if node.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise self._unsafe(name, "a link that may leave the file")
            node = node[name]
        return node

    def _check(self, name: str, dataset: Any, width: int, ndim: int) -> None:  # noqa: ANN401
        import h5py

        if not isinstance(dataset, h5py.Dataset):
            raise self._error(name, "Expected an array, but found a group or a type.", _FIX)
        if dataset.is_virtual or dataset.external is not None:
            raise self._unsafe(name, "a view of other files")
        if dataset.id.get_create_plist().get_nfilters():
            what = "Expected a plain array, but found a compressed one."
            raise self._error(name, what, "Unpack the file with `h5repack -f NONE`.")
        shape, dtype = dataset.shape, dataset.dtype
        fits = shape is not None and len(shape) == ndim and shape[-1] == width
        if not fits or dtype.kind != "f" or shape[0] > MOST_STEPS:
            expected = f"({width},)" if ndim == 1 else f"(T, {width}) with T <= {MOST_STEPS}"
            raise self._error(
                name,
                f"Expected floats of shape {expected}, but found {dtype} of shape {shape}.",
                "Use the features that MMIN distributes.",
            )
        if math.prod(dataset.chunks or ()) * dtype.itemsize > _MOST_CHUNK_BYTES:
            raise self._unsafe(name, f"chunks of shape {dataset.chunks}")

    def _unsafe(self, name: str, found: str) -> DataError:
        fix = "Use a file from a source that you trust, or copy the array itself into the file."
        return self._error(name, f"Expected a plain array, but found {found}.", fix)

    def _error(self, name: str, what: str, fix: str) -> DataError:
        return DataError(name, self.file, what, fix)


@contextmanager
def open_arrays(file: Path) -> Iterator[ArrayFile]:
    """Open an HDF5 file for reading.

    Args:
        file: The file; it is closed when the block ends.

    Yields:
        Access to its arrays.

    Raises:
        DataError: If it is missing, no HDF5 file, or truncated.
    """
    import h5py

    try:
        root = h5py.File(file, "r")
    except OSError as error:
        what = f"Expected an HDF5 file, but it cannot be opened ({error})."
        fix = "Check the path, or download the file again."
        raise DataError(str(file.parent), file, what, fix) from error
    with root:
        yield ArrayFile(file, root)
