"""an Arrow file -> the same bytes, each part of them once it is known how many it unpacks to.

pyarrow unpacks a whole batch of rows at once, to whatever length a file claims.
"""

import io
import struct
from collections.abc import Callable
from typing import Any

# Source: Arrow's Message.fbs and Schema.fbs: the numbers of fields, and of kinds of messages.
_KIND, _CONTENT, _BODY_BYTES = 1, 2, 3  # of a message
_DICTIONARY, _ROWS = 2, 3  # kinds
_DATA = 1  # of a dictionary: its rows
_BUFFERS, _COMPRESSION = 2, 3  # of rows
_MOST_HEADER = 1 << 28  # bytes; four letters of ASCII are more


class CheckedStream(io.RawIOBase):
    """An Arrow stream.

    Args:
        stream: Its bytes, from the first message on.
        check: Called with the bytes that a message takes, before it is handed on; raises an error if they are too many.
    """

    def __init__(self, stream: io.BufferedIOBase, check: Callable[[int], object]) -> None:
        self._stream, self._check = stream, check
        self._ready = memoryview(b"")
        self._num_passed = 0  # bytes of the message that are handed on as they come

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ready and not self._num_passed:
            self._ready = memoryview(self._next_message())
        if self._ready:
            count = min(len(buffer), len(self._ready))
            buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        else:
            count = len(block := self._stream.read(min(len(buffer), self._num_passed)))
            buffer[:count] = block
            self._num_passed = self._num_passed - count if count else 0
        return count

    def _next_message(self) -> bytes:
        """The next message up to its body, and with it if it is compressed."""
        start = self._stream.read(4)
        if start == b"\xff\xff\xff\xff":  # in front of each message since version 0.15
            start += self._stream.read(4)
        size = int.from_bytes(start[-4:], "little")
        if len(start) < 4 or not size:
            return start  # the end
        if size > _MOST_HEADER:  # of other things, such as a web page or a Git LFS pointer
            raise OSError("a message that is none")
        header = self._stream.read(size)
        try:
            body_bytes, buffers = _body(header)
            self._check(body_bytes)
            if not buffers:
                self._num_passed = body_bytes
                return start + header
            body = self._stream.read(body_bytes)
            self._check(sum(_unpacked_bytes(body, *buffer) for buffer in buffers))
        except (struct.error, IndexError):
            raise OSError("a message that is none") from None
        return start + header + body


def _body(header: bytes) -> tuple[int, list[tuple[int, int]]]:
    """How long the body of a message is, and where in it there is something compressed: (start, length) each."""
    (message,) = struct.unpack_from("<I", header)
    at = _field(header, message, _BODY_BYTES)
    (body_bytes,) = struct.unpack_from("<q", header, at) if at else (0,)
    if body_bytes < 0:
        raise IndexError
    at = _field(header, message, _KIND)
    kind = header[at] if at else 0
    if kind not in (_DICTIONARY, _ROWS):
        return body_bytes, []
    rows = _followed(header, _field(header, message, _CONTENT))
    if kind == _DICTIONARY:
        rows = _followed(header, _field(header, rows, _DATA))
    if not _field(header, rows, _COMPRESSION):
        return body_bytes, []
    vector = _followed(header, _field(header, rows, _BUFFERS))
    (count,) = struct.unpack_from("<I", header, vector)
    return body_bytes, [struct.unpack_from("<qq", header, vector + 4 + 16 * number) for number in range(count)]


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table of FlatBuffers lies; 0 if the table has none."""
    (to_offsets,) = struct.unpack_from("<i", data, table)
    offsets = table - to_offsets
    (size,) = struct.unpack_from("<H", data, offsets)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, offsets + 4 + 2 * number)
    return table + offset if offset else 0


def _followed(data: bytes, at: int) -> int:
    """Where the table or vector lies that a field points to."""
    return at + struct.unpack_from("<I", data, at)[0]


def _unpacked_bytes(body: bytes, start: int, length: int) -> int:
    """What a buffer unpacks to, which it begins with; -1 there says that it is not compressed."""
    return max(struct.unpack_from("<q", body, start)[0], 0) if length else 0
