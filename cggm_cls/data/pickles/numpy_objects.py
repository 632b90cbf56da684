"""Stand-ins for what numpy puts into a pickle, built without letting the pickle call numpy.

numpy writes an array as a call of ``_reconstruct`` with an empty shape, followed by a state with
shape, dtype and bytes; ``REDUCE`` makes the call and ``BUILD`` sets the state. Both end here, where
shapes and dtypes are checked against a budget of bytes before anything is allocated.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU](0|[1-9]\d{0,8})|O[48]")
_BYTE_ORDERS = ("<", ">", "=", "|")
_LONGEST_EMPTY = 2**20  # an array without elements may have longer axes than the file has bytes
_AGAIN = (
    "Fetch the original file again; do not open this one with pickle.load, which would obey it."
)


class RefusedError(Exception):
    """A pickle asks for what numbers and text do not need.

    Args:
        what: What was found, to follow "Expected numbers and text alone, but".
        fix: What to do about it, one sentence.
    """

    def __init__(self, what: str, fix: str = _AGAIN) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


@dataclass
class Budget:
    """Bytes that may still be made of a file: no file declares more than it holds.

    Args:
        size: Bytes of the file.
    """

    size: int
    arrays: int = field(init=False)
    encoded: int = field(init=False)

    def __post_init__(self) -> None:
        self.arrays = self.encoded = self.size

    def spend_arrays(self, count: int) -> None:
        """Take the bytes of an array, or one for each of its objects.

        Raises:
            RefusedError: If they are more than what is left.
        """
        self.arrays -= count
        if self.arrays < 0:
            raise RefusedError("its arrays declare more bytes than it holds.")

    def spend_encoded(self, count: int) -> None:
        """Take the bytes of an encoded text.

        Raises:
            RefusedError: If they are more than what is left.
        """
        self.encoded -= count
        if self.encoded < 0:
            raise RefusedError("it encodes more text than it holds.")

    def shape(self, shape: object) -> tuple[int, ...]:
        """A shape, checked to be one of an array that the file could hold.

        Raises:
            RefusedError: If it is not.
        """
        longest = max(self.size, _LONGEST_EMPTY)
        if not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
            raise RefusedError("the shape of an array is no tuple of integers.")
        if not all(0 <= n <= longest for n in shape):
            raise RefusedError("its arrays declare more elements than it holds.")
        return shape


@dataclass(frozen=True)
class Global:
    """A function as the pickle sees it: inert.

    Args:
        name: Of the function, with its module.
        function: What stands for it; takes the budget before the arguments of the pickle.
    """

    name: str
    function: Callable[..., object]

    def call(self, budget: Budget, arguments: tuple[object, ...]) -> object:
        """Call what stands for the function.

        Raises:
            RefusedError: If the arguments are not those that numpy writes.
        """
        try:
            return self.function(budget, *arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise RefusedError(f"it calls {self.name} with other arguments than numpy.") from error


class PickledDtype:
    """A dtype of booleans, numbers, fixed-width text or objects, until its state is known.

    Args:
        code: Such as ``f4``.

    Raises:
        RefusedError: If it is another one.
    """

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise RefusedError(f"an array has the dtype {printable(code)}.")
        self.value = np.dtype(code)

    def build(self, state: tuple[Any, ...], budget: Budget) -> None:
        """Take the byte order; fields, subarrays and metadata are refused.

        Raises:
            RefusedError: If the state is of another dtype.
        """
        _, order, *rest = state
        if any(part is not None for part in rest[:3]) or any(rest[6:]):
            raise RefusedError("an array has a structured dtype.")
        if order not in _BYTE_ORDERS:
            raise RefusedError(f"a dtype has the byte order {printable(order)}.")
        self.value = self.value.newbyteorder(order)


class PickledArray:
    """An array until its content is known."""

    value: NDArray[Any] | list[object] | None = None

    def build(self, state: tuple[Any, ...], budget: Budget) -> None:
        """Take the content: an array, or nested lists of what an object array holds.

        Raises:
            RefusedError: If it does not fit the declared shape, or was given before.
        """
        _, declared, dtype, fortran, content = state
        shape = budget.shape(declared)
        if self.value is not None or not isinstance(dtype, PickledDtype):
            raise RefusedError("an array is built twice, or without a dtype.")
        if dtype.value.hasobject:
            self.value = _nested(budget, content, shape)
        else:
            self.value = _array(budget, content, dtype.value, shape, bool(fortran))


def _nested(budget: Budget, items: object, shape: tuple[int, ...]) -> list[object]:
    if not isinstance(items, list) or not shape or len(items) != math.prod(shape):
        raise RefusedError("an object array has not as many elements as its shape.")
    budget.spend_arrays(len(items))
    for item in items:
        if type(item) not in (str, bytes, type(None)):
            kind = "arrays" if isinstance(item, PickledArray | np.ndarray) else type(item).__name__
            raise RefusedError(f"an object array holds {kind}.", "Save it as numbers or as text.")
    nested: list[object] = items
    for length in reversed(shape[1:] if items else ()):
        nested = [nested[start : start + length] for start in range(0, len(nested), length)]
    return nested


def _array(
    budget: Budget, content: object, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool
) -> NDArray[Any]:
    if isinstance(content, str):  # bytes of Python 2
        content = _encode(budget, content, "latin1")
    count = math.prod(shape) * dtype.itemsize
    if not isinstance(content, bytes) or len(content) != count or not dtype.itemsize:
        what = f"an array of shape {shape} and dtype {dtype} does not have {count} bytes."
        raise RefusedError(what)
    budget.spend_arrays(max(count, dtype.itemsize))
    array: NDArray[Any] = np.empty(0, dtype.newbyteorder("="))
    # Unlike frombuffer it gives a writable array, in the byte order of this machine, and the large
    # ones keep the bytes themselves.
    array.__setstate__((1, shape, dtype, fortran, content))  # type: ignore[arg-type]
    return array


def _reconstruct(budget: Budget, kind: object, shape: object, code: object) -> PickledArray:
    if kind is not GLOBALS["numpy", "ndarray"] or shape != (0,):
        raise RefusedError("it reconstructs what is no plain array.")
    return PickledArray()


def _ndarray(budget: Budget, *arguments: object) -> None:
    raise RefusedError("it asks to call numpy.ndarray, which allocates without data.")


def _from_buffer(
    budget: Budget,
    content: object,
    dtype: object,
    shape: object,
    order: object,
    axes: Sequence[int] | None = None,
) -> NDArray[Any]:
    array = _array(budget, content, _of_bytes(dtype), budget.shape(shape), order == "F")
    return array.transpose(axes) if order == "K" and axes is not None else array


def _dtype(budget: Budget, code: object, align: object, copy: object) -> PickledDtype:
    return PickledDtype(code)


def _scalar(budget: Budget, dtype: object, content: object) -> object:
    known = _of_bytes(dtype)
    if not known.itemsize:
        return known.type().item()
    scalar: object = _array(budget, content, known, (), False).item()
    return scalar


def _of_bytes(dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, PickledDtype) or dtype.value.hasobject:
        raise RefusedError("it makes an array or a scalar of objects.")
    return dtype.value


def _encode(budget: Budget, text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"it asks to encode to {printable(encoding)}.")
    budget.spend_encoded(len(text))
    return text.encode("latin1")


def _empty_bytes(budget: Budget) -> bytes:
    return b""


def printable(text: object) -> str:
    """A name from a file, short and free of control characters.

    Args:
        text: The name; of anything else the type is shown.
    """
    if not isinstance(text, str):
        return type(text).__name__
    return re.sub(r"[^\w.:<>=|/ -]", "?", text[:80])


_CORES = ("numpy.core", "numpy._core")  # as numpy 1 and numpy 2 spell it
_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _CORES},
}
GLOBALS = {names: Global(".".join(names), stand_in) for names, stand_in in _FUNCTIONS.items()}
"""All that a pickle may name, by module and name."""
