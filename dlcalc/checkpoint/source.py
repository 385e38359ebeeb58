"""Bytes of a part of a file, forwards; what is skipped is never read."""

from __future__ import annotations

from typing import BinaryIO

from dlcalc.checkpoint.faults import DamagedError

_CHUNK_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16


class Source:
    """A cursor from ``start`` to ``end`` of ``file``, which nothing else may move meanwhile."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._end = end
        self._chunk = b""
        self._at = 0
        self._chunk_start = start
        file.seek(start)

    @property
    def position(self) -> int:
        return self._chunk_start + self._at

    @property
    def left_bytes(self) -> int:
        return self._end - self.position

    def take(self, n_bytes: int) -> bytes:
        """The next ``n_bytes``."""
        stop = self._at + n_bytes
        if stop > len(self._chunk):
            self._fill(n_bytes)
            stop = n_bytes
        part = self._chunk[self._at : stop]
        self._at = stop
        return part

    def line(self) -> bytes:
        """Up to the next newline, which is left out."""
        stop = self._chunk.find(b"\n", self._at)
        if stop < 0:
            self._fill(min(_LONGEST_LINE_BYTES, self.left_bytes))
            stop = self._chunk.find(b"\n", 0, _LONGEST_LINE_BYTES)
            if stop < 0:
                raise DamagedError("damaged: a line of its pickle never ends")
        part = self._chunk[self._at : stop]
        self._at = stop + 1
        return part

    def skip(self, n_bytes: int) -> None:
        """Go on ``n_bytes`` further without reading them."""
        if n_bytes > self.left_bytes:
            raise _ends_early()
        if self._at + n_bytes <= len(self._chunk):
            self._at += n_bytes
            return
        self._chunk_start, self._chunk, self._at = self.position + n_bytes, b"", 0
        self._file.seek(self._chunk_start)

    def _fill(self, n_bytes: int) -> None:
        """Have at least ``n_bytes`` ahead in the chunk, which then starts at the cursor."""
        if n_bytes > self.left_bytes:
            raise _ends_early()
        kept = self._chunk[self._at :]
        self._chunk_start += self._at
        wanted = min(max(n_bytes, _CHUNK_BYTES), self._end - self._chunk_start)
        self._chunk = kept + self._file.read(wanted - len(kept))
        self._at = 0
        if len(self._chunk) < n_bytes:
            raise _ends_early()


def _ends_early() -> DamagedError:
    return DamagedError("truncated: it ends in the middle of its pickle")
