"""System calls of this process that the kernel refuses, as those on a disk that fails.

A seccomp filter, which needs no privilege, on Linux alone; it stays until the process ends, for all
of its threads.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from typing import Any

_ARCHITECTURES: dict[str, dict[str, int]] = {
    "x86_64": {
        "write": 1,
        "fsync": 74,
        "openat": 257,
        "mkdir": 83,
        "rename": 82,
        "unlink": 87,
        "rmdir": 84,
        "unlinkat": 263,
        "flock": 73,
        "seccomp": 317,
    },
    "aarch64": {
        "write": 64,
        "fsync": 82,
        "openat": 56,
        "mkdirat": 34,
        "renameat": 38,
        "unlinkat": 35,
        "flock": 32,
        "seccomp": 277,
    },
}
_NUMBERS = _ARCHITECTURES.get(platform.machine(), {})
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1
# What to look at in the call's arguments: offset, comparison and value.
_ONLY = {
    "write": (16, _JUMP_GREATER, 2),  # not what is said
    "openat": (32, _JUMP_SET, os.O_CREAT),
}
_CHANGES = ("mkdir", "mkdirat", "rename", "renameat", "unlink", "unlinkat", "rmdir", "openat")

FAULTS: Mapping[str, Mapping[str, int]] = {
    "no space": {"write": errno.ENOSPC},
    "quota exceeded": {"write": errno.EDQUOT},
    "I/O error of write": {"write": errno.EIO},
    "I/O error of fsync": {"fsync": errno.EIO},
    "read-only": dict.fromkeys(_CHANGES, errno.EROFS),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def refuse(calls: Mapping[str, int]) -> None:
    """Let system calls fail from now on; writing fails for files alone, opening for new ones.

    Args:
        calls: Name to error number, see :data:`FAULTS`; those that the machine lacks do not matter.
    """
    rules = [_rule(name, number) for name, number in calls.items() if name in _NUMBERS]
    code = b"".join([*rules, _line(_RETURN, _ALLOW)])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    library: Any = ctypes.CDLL(None, use_errno=True)
    library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    number = _NUMBERS["seccomp"]
    if library.syscall(number, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "The kernel takes no filter")


def _rule(name: str, number: int) -> bytes:
    """Instructions that refuse one call; others pass on to what follows."""
    last = _line(_RETURN, _FAIL | number)
    if name in _ONLY:
        offset, comparison, value = _ONLY[name]
        last = _line(_LOAD, offset) + _line(comparison, value, otherwise=1) + last
    return _line(_LOAD, 0) + _line(_JUMP_EQUAL, _NUMBERS[name], otherwise=len(last) // 8) + last


def _line(code: int, value: int, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, 0, otherwise, value)
