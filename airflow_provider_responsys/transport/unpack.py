"""Unpack an answer piece by piece, and stop at what was asked for: 0.25 MB may become 60."""

import zlib

from airflow_provider_responsys.errors import NoAnswer

ANY_HEADER = 32 + zlib.MAX_WBITS
"""Tells zlib to take gzip and deflate alike."""

PLAIN = frozenset({"", "identity"})
PACKED = frozenset({"gzip", "x-gzip", "deflate"})


class Body:
    """The body of an answer of *host* that was packed as *encoding*; at most *most* bytes come out of it."""

    def __init__(self, host: str, encoding: str, most: int) -> None:
        self._host = host
        self._most = most
        self._found = bytearray()
        encoding = encoding.strip().lower()
        if encoding not in PLAIN | PACKED:
            raise self._lost("the answer is packed in a way that was not asked for")
        self._unpack = zlib.decompressobj(ANY_HEADER) if encoding in PACKED else None

    def add(self, piece: bytes) -> None:
        """Take the next *piece* as it came, or raise `NoAnswer` where it can't be unpacked, or is too much."""
        while piece and self._unpack is not None:
            if self._unpack.eof:  # what follows a packed part is another one
                self._unpack = zlib.decompressobj(ANY_HEADER)
            try:
                self._keep(self._unpack.decompress(piece, self._most - len(self._found) + 1))
            except zlib.error:
                raise self._lost("the answer can't be unpacked") from None
            piece = self._unpack.unused_data
        self._keep(piece)

    def whole(self) -> bytes:
        """Return the whole body; one that ends in the middle of what was packed is no answer."""
        if self._unpack is not None and self._found and not self._unpack.eof:
            raise self._lost("the answer ends too early")
        return bytes(self._found)

    def _keep(self, found: bytes) -> None:
        self._found += found
        if len(self._found) > self._most:
            raise self._lost(f"the answer is longer than {self._most} bytes")

    def _lost(self, why: str) -> NoAnswer:
        return NoAnswer(f"{self._host}: the request left, and {why}")
