"""Bytes of a part of a file, forwards; what is skipped is never read."""

from __future__ import annotations

from typing import BinaryIO

from dlcalc.checkpoint.faults import DamagedError

_CHUNK_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16


class Source:
    """A cursor from ``start`` to ``end`` of ``file``, which nothing else may move meanwhile.

    ``chunk[at:]`` is what comes next, as far as it has been read; whoever takes from it moves ``at``.
    """

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._end = end
        self.chunk = b""
        self.at = 0
        self._chunk_start = start
        file.seek(start)

    @property
    def position(self) -> int:
        return self._chunk_start + self.at

    @property
    def left_bytes(self) -> int:
        return self._end - self.position

    def take(self, n_bytes: int) -> bytes:
        """The next ``n_bytes``."""
        stop = self.at + n_bytes
        if stop > len(self.chunk):
            self._fill(n_bytes)
            stop = n_bytes
        part = self.chunk[self.at : stop]
        self.at = stop
        return part

    def line(self) -> bytes:
        """Up to the next newline, which is left out."""
        stop = self.chunk.find(b"\n", self.at)
        if stop < 0:
            self._fill(min(_LONGEST_LINE_BYTES, self.left_bytes))
            stop = self.chunk.find(b"\n", 0, _LONGEST_LINE_BYTES)
            if stop < 0:
                raise DamagedError("damaged: a line of its pickle never ends")
        part = self.chunk[self.at : stop]
        self.at = stop + 1
        return part

    def skip(self, n_bytes: int) -> None:
        """Go on ``n_bytes`` further without reading them."""
        if n_bytes > self.left_bytes:
            raise _ends_early()
        if self.at + n_bytes <= len(self.chunk):
            self.at += n_bytes
            return
        self._chunk_start, self.chunk, self.at = self.position + n_bytes, b"", 0
        self._file.seek(self._chunk_start)

    def _fill(self, n_bytes: int) -> None:
        """Have at least ``n_bytes`` ahead in the chunk, which then starts at the cursor."""
        if n_bytes > self.left_bytes:
            raise _ends_early()
        kept = self.chunk[self.at :]
        self._chunk_start += self.at
        wanted = min(max(n_bytes, _CHUNK_BYTES), self._end - self._chunk_start)
        self.chunk = kept + self._file.read(wanted - len(kept))
        self.at = 0
        if len(self.chunk) < n_bytes:
            raise _ends_early()


def _ends_early() -> DamagedError:
    return DamagedError("truncated: it ends in the middle of its pickle")
