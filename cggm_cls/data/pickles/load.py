"""Reader of pickles of arrays and containers, which calls nothing that a file names.

Python's ``pickle.load`` runs whatever a file asks for, and data sets are passed on as pickles. Here
a file may build containers, numbers and text; numpy's functions, which every pickle of arrays
names, are replaced by stand-ins (:mod:`~cggm_cls.data.pickles.numpy_objects`) that check their
arguments; what came out is then made plain (:mod:`~cggm_cls.data.pickles.containers`). Whatever is
not on a list is refused, and memory is bounded by the size of the file.
"""

import os
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cggm.errors import DataError, UserError
from cggm_cls.data.pickles.containers import plain_content
from cggm_cls.data.pickles.numpy_objects import (
    GLOBALS,
    Budget,
    Global,
    PickledArray,
    PickledDtype,
    RefusedError,
    printable,
)

_MOST_STEPS = 1_000_000
_LITTLE = 65_536  # bytes, read without asking how many are left
# fmt: off
_READ = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "LIST", "EMPTY_LIST", "APPEND",
    "APPENDS", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "GET", "BINGET",
    "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL",
)
# fmt: on
_NAMES = {op.code: op.name for op in pickletools.opcodes}


def load_arrays(file: Path) -> object:
    """Read a pickle of any protocol, of Python 2 too, that holds numbers and text alone.

    Nothing in the file is called: the few functions that numpy names in pickles are replaced by
    ones that check their arguments. An array never has more bytes than the file, and small objects
    are limited in number, so memory stays within a few times the size of the file.

    Args:
        file: The pickle.

    Returns:
        Nested dict, list, tuple, str, bytes, int, float, bool, ``None`` and arrays of booleans,
        numbers or fixed-width text. Object arrays of texts become nested lists, numpy scalars
        Python's, text of Python 2 that was bytes there is decoded as Latin-1.

    Raises:
        DataError: If the file is absent, damaged, or holds or asks for anything else.
        UserError: If memory runs out.
    """
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = _ArrayUnpickler(stream, size).load()
        return plain_content(content, size)
    except RefusedError as error:
        what = f"Expected numbers and text alone, but {error.what}"
        raise DataError(file.name, file, what, error.fix) from error
    except OSError as error:
        what = f"Expected a pickle, but it cannot be read ({error.strerror})."
        raise DataError(file.name, file, what, "Check the path and its permissions.") from error
    except MemoryError:
        what = f"{file}: expected room for {size / 1e9:.1f} GB, but memory ran out."
        raise UserError(what, "Close other programs, or convert it on a larger machine.") from None
    except EOFError as error:
        what = "Expected a whole pickle, but it is truncated."
        raise DataError(file.name, file, what, "Fetch the file again.") from error
    except Exception as error:  # the bytes decide which
        what = f"Expected a pickle of arrays, but it is damaged or none ({type(error).__name__})."
        raise DataError(file.name, file, what, "Fetch the file again.") from error


@dataclass(frozen=True)
class _Whole:
    """A file whose reads give all they ask for, and claim no memory beyond its end."""

    stream: BinaryIO
    size: int

    def read(self, count: int) -> bytes:
        if count > _LITTLE and count > self.size - self.stream.tell():
            raise EOFError
        data = self.stream.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def readline(self) -> bytes:
        return self.stream.readline()


class _Steps(dict[int, Callable[[Any], None]]):
    """Table of what each opcode does; the others are refused by their name."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        if chr(code) not in _NAMES:
            raise pickle.UnpicklingError("no opcode")
        raise RefusedError(f"it uses the opcode {_NAMES[chr(code)]}.")


def _counted(step: Callable[[Any], None]) -> Callable[[Any], None]:
    def take(unpickler: "_ArrayUnpickler") -> None:
        unpickler.steps += 1
        if unpickler.steps > _MOST_STEPS:
            what = f"it holds more than {_MOST_STEPS} single objects."
            raise RefusedError(what, "Save numbers as arrays.")
        step(unpickler)

    return take


def _code(name: str) -> int:
    code: bytes = getattr(pickle, name)
    return code[0]


class _ArrayUnpickler(pickle._Unpickler):
    """Python's own unpickler, not the faster one in C.

    That one fills memory up to whatever memo index a file names, and recurses in C to hash nested
    tuples. Arrays are read in one piece, so little time is lost.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def __init__(self, stream: BinaryIO, size: int) -> None:
        super().__init__(_Whole(stream, size), encoding="latin1")
        self.budget = Budget(size)
        self.steps = 0

    def find_class(self, module: str, name: str) -> Global:
        if (module, name) not in GLOBALS:
            raise RefusedError(f"it asks to call {printable(f'{module}.{name}')}.")
        return GLOBALS[module, name]

    def _call(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise RefusedError("it calls what is no function.")
        self.stack[-1] = function.call(self.budget, arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], PickledArray | PickledDtype):
            raise RefusedError("it sets the state of what is no array.")
        self.stack[-1].build(state, self.budget)

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode() for _ in range(2))
        self.find_class(module, name)
        raise RefusedError("it uses the opcode INST.")

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _set_items(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise RefusedError("it sets an item of what is no dict.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, bytes) and not _is_small(key):
                raise RefusedError("the key of a dict is neither text nor a small integer.")
            target[key] = value

    dispatch = _Steps(  # type: ignore[assignment]
        {_code(name): _counted(pickle._Unpickler.dispatch[_code(name)]) for name in _READ}
        | {
            # An array over bytes is as writable as one over a bytearray, which is filled twice.
            _code("BYTEARRAY8"): _counted(pickle._Unpickler.dispatch[_code("BINBYTES8")]),
            _code("REDUCE"): _counted(_call),
            _code("BUILD"): _counted(_build),
            _code("INST"): _counted(_instance),
            _code("DICT"): _counted(_dict),
            _code("SETITEM"): _counted(_set_item),
            _code("SETITEMS"): _counted(_set_items),
        }
    )


def _is_small(key: object) -> bool:
    return type(key) is int and key.bit_length() <= 32
