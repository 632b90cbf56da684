"""Files and gzip files that are read once: hashed, inflated and checked on the way."""

import gzip
import hashlib
from typing import BinaryIO

from zlib_ng import zlib_ng

_CHUNK = 1 << 16
_MOST = 1 << 20  # inflated at once: a chunk of zeros would become 66 MB
_GZIP = 31  # window bits that make zlib expect a gzip stream and compare its checksum and length
_MAGIC = b"\x1f\x8b"


class HashedStream:
    """The content of a file, plain or gzip, with little memory and at the speed of zlib-ng.

    ``gzip.GzipFile`` would do, but takes twice the time to inflate, copies everything twice and
    computes a checksum of its own.

    Args:
        file: Opened for reading bytes.
        zipped: Whether to inflate it.
    """

    def __init__(self, file: BinaryIO, *, zipped: bool) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file
        self._inflater = zlib_ng.decompressobj(_GZIP) if zipped else None
        self._rest = b""
        if zipped:
            self._start_member()

    def fill(self, buffer: bytearray | memoryview) -> int:
        """Reads into a buffer of bytes; returns how many bytes there were, fewer only at the end.

        Raises:
            EOFError: If a gzip stream is cut short.
            gzip.BadGzipFile: If the file, or what follows a gzip stream in it, is none.
            zlib_ng.error: If a gzip stream is damaged.
        """
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            part = self._part(len(buffer) - filled)
            if not part:
                break
            view[filled : filled + len(part)] = part
            filled += len(part)
        return filled

    def _part(self, most: int) -> bytes:
        if self._inflater is None:
            return self._read(min(most, _CHUNK))
        part = b""
        while not part:
            if self._inflater.eof and not self._start_member():
                return b""
            compressed = self._rest or self._read(_CHUNK)
            part = self._inflater.decompress(compressed, min(most, _MOST))
            ended = self._inflater.eof
            self._rest = self._inflater.unused_data if ended else self._inflater.unconsumed_tail
            if not part and not compressed and not ended:
                raise EOFError("the gzip stream is cut short")
        return part

    def _start_member(self) -> bool:
        """Goes to the next gzip stream of the file, past zeros; tells whether there is one."""
        while not self._rest.lstrip(b"\0"):
            self._rest = self._read(_CHUNK)
            if not self._rest:
                return False
        self._rest = self._rest.lstrip(b"\0")
        if len(self._rest) == 1:
            self._rest += self._read(_CHUNK)
        if not self._rest.startswith(_MAGIC):
            raise gzip.BadGzipFile(f"Not a gzipped file ({self._rest[:2]!r})")
        self._inflater = zlib_ng.decompressobj(_GZIP)
        return True

    def _read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self.sha256.update(chunk)
        return chunk
