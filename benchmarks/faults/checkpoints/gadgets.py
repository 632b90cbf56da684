"""Pickles that run code when loaded by a loader that believes them: each makes one marker file.

A gadget is a call that its pickle asks for. The calls are nested, hidden in states and items, and
packed in every format that torch.load knows.
"""

import builtins
import collections
import copyreg
import functools
import importlib
import io
import logging
import operator
import os
import pickle
import posix
import runpy
import shutil
import subprocess
import timeit
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Dump = Callable[[object], bytes]


class Call:
    """Pickled as the call of a function; itself callable, so that calls can be nested."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: object,
        state: object = None,
        items: tuple[object, ...] = (),
    ) -> None:
        self.function, self.arguments = function, arguments
        self.state, self.items = state, items

    def __call__(self) -> None:
        """Never called: the pickler asks that what is to be called later can be called now."""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.items:
            return self.function, self.arguments, self.state, iter(self.items)
        return self.function, self.arguments, self.state


def hostile_files(markers: Path, scripts: Path) -> Iterator[tuple[str, Path, bytes]]:
    """Fifty files: what each tries, the marker file it makes, and its content."""
    targets, formats = list(_TARGETS.items()), list(_FORMATS.items())
    for number in range(50 - len(_BY_HAND)):
        what, target = targets[number % len(targets)]
        # The second round over the calls meets them in other formats.
        form, dump = formats[(number + number // len(targets)) % len(formats)]
        marker = markers / str(number)
        yield f"{what} in {form}", marker, dump(target(str(marker), scripts))
    for number, (what, template) in enumerate(_BY_HAND.items()):
        marker = markers / f"by-hand-{number}"
        yield what, marker, template % f"touch {marker}".encode()


def _script(marker: str, folder: Path) -> str:
    file = folder / f"{Path(marker).name}.py"
    file.write_text(_code(marker))
    return str(file)


def _code(marker: str) -> str:
    return f"open({marker!r}, 'w').close()"


def _touch(marker: str) -> str:
    return f"touch {marker}"


def _pickled(marker: str) -> bytes:
    return pickle.dumps(Call(os.mkdir, marker), 2)


def _torch_file(marker: str, folder: Path) -> str:
    file = folder / f"{Path(marker).name}.pt"
    torch.save(Call(os.mkdir, marker), file)
    return str(file)


def _object_array(marker: str, folder: Path) -> str:
    file = folder / f"{Path(marker).name}.npy"
    np.save(file, np.array([Call(os.mkdir, marker)], object), allow_pickle=True)
    return str(file)


def _with(**attributes: object) -> Any:  # noqa: ANN401
    """Makes an object with these attributes when unpickled."""
    return functools.partial(types.SimpleNamespace, **attributes)


_TARGETS: dict[str, Callable[[str, Path], object]] = {
    "posix.system": lambda m, _: Call(posix.system, _touch(m)),
    "exec": lambda m, _: Call(builtins.exec, _code(m)),
    "eval": lambda m, _: Call(builtins.eval, _code(m)),
    "open": lambda m, _: Call(builtins.open, m, "w"),
    "os.mkdir": lambda m, _: Call(os.mkdir, m),
    "os.open": lambda m, _: Call(os.open, m, os.O_CREAT),
    "os.popen": lambda m, _: Call(os.popen, _touch(m)),
    "subprocess.Popen": lambda m, _: Call(subprocess.Popen, ["touch", m]),
    "subprocess.run": lambda m, _: Call(subprocess.run, ["touch", m]),
    "subprocess.getoutput": lambda m, _: Call(subprocess.getoutput, _touch(m)),
    "shutil.copyfile": lambda m, s: Call(shutil.copyfile, _script(m, s), m),
    "runpy.run_path": lambda m, s: Call(runpy.run_path, _script(m, s)),
    "timeit.timeit": lambda m, _: Call(timeit.timeit, _code(m), "pass", timeit.default_timer, 1),
    "Path.touch": lambda m, _: Call(Path.touch, Path(m)),
    "logging.FileHandler": lambda m, _: Call(logging.FileHandler, m),
    "functools.partial": lambda m, _: Call(functools.partial(os.system, _touch(m))),
    "operator.call": lambda m, _: Call(operator.call, os.system, _touch(m)),
    "operator.methodcaller": lambda m, _: Call(Call(operator.methodcaller, "touch"), Path(m)),
    "getattr of an import": lambda m, _: Call(
        Call(getattr, Call(importlib.import_module, "os"), "system"), _touch(m)
    ),
    "map": lambda m, _: Call(list, Call(map, os.system, [_touch(m)])),
    "nested calls": lambda m, _: Call(tuple, [Call(dict, [("a", Call(os.mkdir, m))])]),
    "default of a dict": lambda m, _: Call(
        operator.getitem,
        Call(collections.defaultdict, functools.partial(os.system, _touch(m))),
        0,
    ),
    "__setstate__": lambda m, _: Call(_with(__setstate__=os.system), state=_touch(m)),
    "append": lambda m, _: Call(_with(append=os.system), items=(_touch(m),)),
    "copyreg._reconstructor": lambda m, _: Call(
        copyreg._reconstructor,  # type: ignore[attr-defined]
        logging.FileHandler,
        logging.FileHandler,
        m,
    ),
    "copyreg.__newobj__": lambda m, _: Call(
        functools.partial(copyreg.__newobj__, np.memmap),  # type: ignore[attr-defined]
        m,
        "uint8",
        "w+",
        0,
        (1,),
    ),
    "pickle.loads": lambda m, _: Call(pickle.loads, _pickled(m)),
    "numpy.load": lambda m, s: Call(np.load, _object_array(m, s), None, True),
    "torch.load": lambda m, s: Call(
        functools.partial(torch.load, weights_only=False), _torch_file(m, s)
    ),
    "torch.storage._load_from_bytes": lambda m, s: Call(
        torch.storage._load_from_bytes, Path(_torch_file(m, s)).read_bytes()
    ),
    "torch._tensor._rebuild_from_type_v2": lambda m, _: Call(
        torch._tensor._rebuild_from_type_v2, os.system, int, (_touch(m),), {}
    ),
}


def _saved(legacy: bool, wrap: Callable[[object], object] = lambda gadget: gadget) -> Dump:
    def dump(gadget: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(wrap(gadget), buffer, _use_new_zipfile_serialization=not legacy)
        return buffer.getvalue()

    return dump


def _state(gadget: object) -> dict[str, Any]:
    """A gadget deep in what looks like the state of a run."""
    group = {"lr": torch.ones(1), "betas": [gadget]}
    return {"parts": {"optimizer": {"state": {}, "param_groups": [group]}}, "rng": {}}


_FORMATS: dict[str, Dump] = {
    "the zip format": _saved(legacy=False),
    "the legacy format": _saved(legacy=True),
    "a state in the zip format": _saved(legacy=False, wrap=_state),
    "pickle protocol 4": lambda gadget: pickle.dumps(gadget, 4),
    "a state in the legacy format": _saved(legacy=True, wrap=_state),
    "pickle protocol 0": lambda gadget: pickle.dumps(gadget, 0),
}
# Opcodes that no pickler writes for these calls.
_BY_HAND = {
    "GLOBAL and REDUCE by hand": b"cos\nsystem\n(S'%s'\ntR.",
    "INST by hand": b"(S'%s'\nios\nsystem\n.",
    "OBJ by hand": b"(cos\nsystem\nS'%s'\no.",
    "STACK_GLOBAL by hand": b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'%s'\ntR.",
    "a name with dots by hand": b"\x80\x04\x8c\x06shutil\x8c\x09os.system\x93(S'%s'\ntR.",
}
