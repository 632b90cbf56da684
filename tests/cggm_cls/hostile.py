"""Pickles that try to run code or to exhaust memory, and what their refusals must name."""

import builtins
import functools
import operator
import os
import pickle
import shutil
import struct
import subprocess
from dataclasses import dataclass

import numpy as np

PROTOCOLS = range(6)


@dataclass(frozen=True)
class Call:
    """Pickled, it asks to call a function."""

    function: object
    arguments: tuple

    def __reduce__(self):
        return self.function, self.arguments


@dataclass
class Rebuild:
    """Pickled, it asks to call a function, by the newer of the two hooks."""

    function: object
    arguments: tuple

    def __reduce_ex__(self, protocol):
        return self.function, self.arguments


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def raw(data):
    return b"B" + struct.pack("<I", len(data)) + data


def sequence(*items):
    return b"(" + b"".join(items) + b"t"


def call(module, name, *arguments):
    return named(module, name) + sequence(*arguments) + b"R"


def dtype(code, *state):
    built = call("numpy", "dtype", text(code), b"I0\n", b"I1\n")
    return built + sequence(*state) + b"b" if state else built


def empty_array():
    kind, shape = named("numpy", "ndarray"), sequence(b"K\0")
    return call("numpy.core.multiarray", "_reconstruct", kind, shape, raw(b"b"))


def array(shape, code, content):
    state = sequence(b"K\1", sequence(*map(number, shape)), code, b"\x89", content)
    return empty_array() + state + b"b"


def from_buffer(content, code, shape, order="C"):
    shape = sequence(*map(number, shape))
    return call("numpy.core.numeric", "_frombuffer", content, code, shape, text(order))


def executing(sentinel):
    """Pickles that create the sentinel file when ``pickle.load`` reads them."""
    touch = f"touch {sentinel}"
    write = f"open({sentinel!r}, 'w').close()"
    payloads = {
        "posix.system": (os.system, (touch,)),
        "eval": (builtins.eval, (write,)),
        "exec": (builtins.exec, (write,)),
        "check_call": (subprocess.check_call, (["touch", sentinel],)),
        "open": (open, (sentinel, "w")),
        "posix.mkdir": (os.mkdir, (sentinel,)),
        "shutil.copyfile": (shutil.copyfile, (os.devnull, sentinel)),
    }
    wraps = {
        "bare": lambda payload: payload,
        "in a dict": lambda payload: {"train": {"text": np.zeros(3), "id": [payload]}},
        "in an object array": lambda payload: {"id": np.array(["a", payload, None], object)},
    }
    for offender, (function, arguments) in payloads.items():
        for protocol in PROTOCOLS:
            for where, wrap in wraps.items():
                kind = Rebuild if protocol % 2 else Call
                content = wrap(kind(function, arguments))
                name = f"{offender} {where}, protocol {protocol}"
                yield name, offender, pickle.dumps(content, protocol)
    system = text(touch)
    yield "INST", "os.system", b"(" + system + b"ios\nsystem\n."
    yield "OBJ", "os.system", b"(" + named("os", "system") + system + b"o."
    yield (
        "dotted name",
        "os.path.os.system",
        (b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + system + b"\x85R."),
    )
    yield (
        "partial",
        "functools.partial",
        pickle.dumps(Call(functools.partial(os.system, touch), ()), 2),
    )
    yield "after an array", "posix.system", pickle.dumps([np.ones(9), Call(os.system, (touch,))], 5)
    yield "as a key", "posix.system", pickle.dumps({Call(os.system, (touch,)): 1}, 4)


def naming():
    """Pickles that name what data do not need."""
    others = {
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy", "memmap"),
        ("numpy", "zeros"),
        ("numpy", "empty"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy.core.multiarray", "fromstring"),
        ("numpy._core.multiarray", "empty"),
        ("numpy.core.multiarray", "frombuffer"),
        ("numpy.lib.npyio", "NpzFile"),
        ("numpy.ma.core", "_mareconstruct"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("builtins", "getattr"),
        ("builtins", "bytearray"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("__builtin__", "xrange"),
        ("copy_reg", "_reconstructor"),
        ("copyreg", "__newobj__"),
        ("types", "FunctionType"),
        ("codecs", "decode"),
        ("_codecs", "decode"),
        ("collections", "OrderedDict"),
        ("pandas.core.frame", "DataFrame"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("cggm_cls.data.pickles.load", "load_arrays"),
        ("", ""),
    }
    for module, name in sorted(others):
        yield f"global {module}.{name}", f"{module}.{name}", named(module, name) + b"."
        stacked = b"\x80\x04" + text(module) + text(name) + b"\x93."
        yield f"stacked global {module}.{name}", f"{module}.{name}", stacked
    yield (
        "control characters",
        "os?.?system",
        (b"\x80\x04" + text("os\n") + text("\x1bsystem") + b"\x93."),
    )
    getter = Call(operator.attrgetter("system"), (os,).__class__(("os",)))
    yield "attrgetter", "operator.attrgetter", pickle.dumps(getter, 2)


def opcodes():
    """Opcodes that data do not need, and needed ones on odd targets."""
    ndarray = named("numpy", "ndarray")
    yield "PERSID", "PERSID", b"Pos.system\n."
    yield "BINPERSID", "BINPERSID", text("os.system") + b"Q."
    yield "EXT1", "EXT1", b"\x82\x01."
    yield "EXT2", "EXT2", b"\x83\x01\x00."
    yield "EXT4", "EXT4", b"\x84\x01\x00\x00\x00."
    yield "NEWOBJ", "NEWOBJ", ndarray + number(10**9) + b"\x85\x81."
    yield "NEWOBJ_EX", "NEWOBJ_EX", ndarray + number(10**9) + b"\x85}\x92."
    yield "OBJ of numpy", "OBJ", b"(" + ndarray + number(10**9) + b"o."
    yield "INST of numpy", "INST", b"(" + number(10**9) + b"inumpy\nndarray\n."
    yield "NEXT_BUFFER", "NEXT_BUFFER", b"\x97."
    yield "READONLY_BUFFER", "READONLY_BUFFER", raw(b"a") + b"\x98."
    yield "EMPTY_SET", "EMPTY_SET", b"\x8f."
    yield "FROZENSET", "FROZENSET", b"(K\1\x91."
    yield "DUP", "DUP", b"]2."
    yield "BUILD of a dict", "state", b"}}b."
    yield "BUILD of a list", "state", b"]}b."
    yield "BUILD of a function", "state", ndarray + b"N}" + text("name") + b"Ns\x86b."
    yield "REDUCE of text", "no function", text("os.system") + b")R."
    yield "REDUCE without a tuple", "no function", ndarray + b"]R."
    yield "item of an array", "no dict", array([1], dtype("u1"), raw(b"a")) + b"K\0K\1s."
    yield "item of a list", "no dict", b"]K\0K\1s."
    yield "tuple as key", "key of a dict", b"}" + sequence(b"K\1") + b"Ns."
    yield "deep tuple as key", "key of a dict", b"}N" + b"\x85" * 200_000 + b"Ns."
    yield "huge integer as key", "key of a dict", b"}" + number(2**40) + b"Ns."
    yield "bare function", "bare Global", ndarray + b"."
    yield "bare dtype", "bare PickledDtype", dtype("f4") + b"."
    yield "function in a list", "bare Global", b"](" + named("_codecs", "encode") + b"e."


def arrays():
    """Arrays that are not what they say."""
    f4, u1, objects = dtype("f4"), dtype("u1"), dtype("O8")
    huge = [10**9]
    swapped = dtype("f4", b"K\3", text(">"), b"N", b"N", b"N", number(-1), number(-1), b"K\0")
    fields = dtype("u1", b"K\3", text("|"), b"N", sequence(text("a")), b"}", b"K\1", b"K\1", b"K\0")
    metadata = dtype("u1", b"K\4", text("|"), b"N", b"N", b"N", b"K\1", b"K\1", b"K\0", b"}K\1K\1s")
    order = dtype("f4", b"K\3", text("x"), b"N", b"N", b"N", b"K\1", b"K\1", b"K\0")
    yield "ndarray called", "numpy.ndarray", call("numpy", "ndarray", sequence(number(10**9)))
    yield "huge shape, few bytes", "more elements than it holds", array(huge, u1, raw(b"a"))
    yield "huge shape, object array", "more elements", array(huge, objects, b"]")
    yield "no bytes", "does not have", array([1000, 900], f4, raw(b""))
    yield "overflowing shape", "more elements", array([2**62, 4], f4, raw(b""))
    yield "negative shape", "more elements", array([-1], f4, raw(b"abcd"))
    yield (
        "shape of a text",
        "no tuple of integers",
        (empty_array() + sequence(b"K\1", text("a"), f4, b"\x89", raw(b"")) + b"b"),
    )
    yield "bytes of another size", "does not have", array([2], f4, raw(b"abcd"))
    yield "list for bytes", "does not have", array([1], f4, b"]")
    yield "buffer, huge shape", "more elements", from_buffer(raw(b"abcd"), f4, huge)
    yield "buffer, unknown size", "more elements", from_buffer(raw(b"abcd"), f4, [-1])
    yield "buffer of objects", "scalar of objects", from_buffer(raw(b"abcdefgh"), objects, [1])
    yield "buffer without dtype", "scalar of objects", from_buffer(raw(b"abcd"), text("f4"), [1])
    yield (
        "buffer, odd arguments",
        "numpy.core.numeric._frombuffer",
        (call("numpy.core.numeric", "_frombuffer", b"K\1")),
    )
    yield (
        "buffer, odd axes",
        "numpy.core.numeric._frombuffer",
        call(
            *("numpy.core.numeric", "_frombuffer", raw(b"abcd"), f4, sequence(b"K\1"), text("K")),
            sequence(number(7)),
        ),
    )
    yield (
        "empty array of huge text",
        "more bytes than it holds",
        (array([0], dtype("S999999999"), raw(b""))),
    )
    yield (
        "scalar of huge text",
        "does not have",
        call("numpy.core.multiarray", "scalar", dtype("U99999999"), raw(b"a")),
    )
    yield (
        "scalar object",
        "scalar of objects",
        call("numpy.core.multiarray", "scalar", objects, text("a")),
    )
    yield "dtype too large for numpy", "numpy.dtype", dtype("U999999999")
    yield "dtype V", "dtype V1000000000", dtype("V1000000000")
    yield "dtype M", "dtype M8", dtype("M8")
    yield "dtype of fields", "dtype f4?f4", dtype("f4,f4")
    yield "dtype of a subarray", "?9999?f4", dtype("(9999)f4")
    yield "dtype of a list", "numpy.dtype", call("numpy", "dtype", b"]")
    yield "structured dtype", "structured dtype", fields
    yield "dtype with metadata", "structured dtype", metadata
    yield "byte order", "byte order x", order
    yield "array without content", "no content", empty_array()
    yield (
        "array built twice",
        "built twice",
        (
            array([1], u1, raw(b"a"))
            + sequence(b"K\1", sequence(b"K\1"), u1, b"\x89", raw(b"a"))
            + b"b"
        ),
    )
    yield (
        "subclass reconstructed",
        "no plain array",
        call(
            "numpy.core.multiarray",
            "_reconstruct",
            named("numpy", "dtype"),
            sequence(b"K\0"),
            raw(b"b"),
        ),
    )
    yield (
        "huge array reconstructed",
        "no plain array",
        call(
            *("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray")),
            *(sequence(number(10**9)), raw(b"b")),
        ),
    )
    yield (
        "array of arrays",
        "object array holds arrays",
        pickle.dumps(np.array([np.ones(2), np.ones(3)], object), 4),
    )
    yield "array of dicts", "object array holds dict", pickle.dumps(np.array([{}, {}], object), 5)
    yield "array of floats", "object array holds float", pickle.dumps(np.array([1.0], object), 2)
    yield "array of empty objects", "more elements", array([10**9, 0], objects, b"]")
    yield (
        "array of itself",
        "object array holds arrays",
        (
            empty_array()
            + b"q\x01"
            + sequence(b"K\1", sequence(b"K\1"), objects, b"\x89", b"](h\x01e")
            + b"b"
        ),
    )
    rows = b"".join(array([2, 150_000], b"h\x02", b"h\x01") for _ in range(1000))
    yield (
        "one list for many object arrays",
        "more bytes than it holds",
        (b"(](" + b"N" * 300_000 + b"eq\x01" + objects + b"q\x02" + rows + b"t"),
    )
    copies = b"".join(array([250_000], b"h\x02", b"h\x01") for _ in range(300))
    yield (
        "swapped copies",
        "more bytes than it holds",
        (b"(" + raw(bytes(10**6)) + b"q\x01" + swapped + b"q\x02" + copies + b"t"),
    )


def sizes():
    """Lengths and repetitions that a file cannot hold, and structures too deep to walk."""
    length = struct.pack("<Q", 2**40)
    for name, code in {"BINBYTES8": b"\x8e", "BINUNICODE8": b"\x8d", "BYTEARRAY8": b"\x96"}.items():
        yield f"{name} of a terabyte", "truncated", b"\x80\x05" + code + length + b"a."
    yield "BINBYTES of 4 GB", "truncated", b"B\xff\xff\xff\xffa."
    yield "BINUNICODE of 4 GB", "truncated", b"X\xff\xff\xff\xffa."
    yield "BINSTRING of 2 GB", "truncated", b"T\xff\xff\xff\x7fa."
    yield "LONG4 of 2 GB", "truncated", b"\x8b\xff\xff\xff\x7fa."
    yield "FRAME of a terabyte", "truncated", b"\x80\x04\x95" + length + b"N."
    yield "no end", "truncated", b"]"
    yield "empty", "truncated", b""
    yield (
        "memo index 2**32 - 1, never used",
        "bare Global",
        (b"Nr\xff\xff\xff\xffp999999999999\n0" + named("numpy", "dtype") + b"."),
    )
    yield "memo index of a million digits", "damaged", b"Np" + b"9" * 10**6 + b"\n."
    yield "decimal integer of a million digits", "damaged", b"L" + b"9" * 10**6 + b"L\n."
    yield (
        "integer of a megabyte",
        "more than 64 bits",
        (b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b"."),
    )
    encode = named("_codecs", "encode") + b"q\x01"
    arguments = sequence(text("a" * 10**6), text("latin1")) + b"q\x02"
    yield (
        "encoded again and again",
        "encodes more text",
        (b"(" + encode + arguments + b"R" + b"h\x01h\x02R" * 1000 + b"t."),
    )
    yield (
        "other encoding",
        "unicode_escape",
        (call("_codecs", "encode", text("a"), text("unicode_escape")) + b"."),
    )
    yield (
        "text beyond latin1",
        "_codecs.encode",
        (call("_codecs", "encode", text("\u2028"), text("latin1")) + b"."),
    )
    for name, (empty, pair) in {
        "lists": (b"]", b"](h%ch%ce"),
        "tuples": (b")", b"h%ch%c\x86"),
    }.items():
        levels = (pair % (level, level) + b"q%c" % (level + 1) for level in range(30))
        yield f"2**30 {name}", "huge when written out", empty + b"q\0" + b"".join(levels) + b"."
    yield (
        "one text ten thousand times",
        "huge when written out",
        (b"](" + text("a" * 10**5) + b"q\0" + b"h\0" * 10_000 + b"e."),
    )
    yield (
        "one array many times",
        "huge when written out",
        (b"](" + array([10**6], dtype("u1"), raw(bytes(10**6))) + b"q\0" + b"h\0" * 1000 + b"e."),
    )
    yield (
        "one long text among many",
        "huge when written out",
        (b"](" + text("a" * 10**5) + text("b") * 10**4 + b"e."),
    )
    yield "deep lists", "nested more than", b"]" * 100_000 + b"a" * 99_999 + b"."
    yield "deep tuples", "nested more than", b"N" + b"\x85" * 100_000 + b"."
    yield "deep dicts", "nested more than", b"}" + b"K\0}" * 40 + b"s" * 40 + b"."
    yield "list of itself", "nested more than", b"]q\0h\0a."
    yield "many lists", "lists, tuples and dicts", b"](" + b"]" * 300_000 + b"e."
    yield "many marks", "single objects", b"(" * 1_000_001 + b"."
    yield "many dicts", "single objects", b"}\x94" * 500_001 + b"."
    yield "stack underflow", "damaged", b"0000."
    yield "append to a tuple", "damaged", b")Na."
    yield "unknown memo index", "damaged", b"h\x07."
    yield "protocol 99", "damaged", b"\x80\x63N."
    yield "web page", "damaged or none", b"<!DOCTYPE html><html>Quota exceeded</html>"


def harmful():
    """All that run nothing even under ``pickle.load`` or could exhaust memory."""
    for name, offender, data in (*naming(), *opcodes(), *arrays()):
        yield name, offender, data if data.endswith(b".") else data + b"."
    yield from sizes()
