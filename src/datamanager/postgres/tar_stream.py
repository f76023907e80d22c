"""Reading the tar stream of BASE_BACKUP as it arrives, without copying it.

The server writes ustar headers of its own: names of at most 99 bytes, sizes in octal or base 256, no extensions.
Source: PostgreSQL src/port/tar.c; POSIX.1 pax, ustar Interchange Format.
"""

from __future__ import annotations

import zlib

from datamanager.base.errors import StreamBroken
from datamanager.postgres.source import FileReceiver

BLOCK = 512
_REGULAR, _LINK, _DIRECTORY = b"0", b"2", b"5"


class TarReader:
    """Parses one archive fed in pieces of any size and pushes its files to a receiver.

    Args: prefix - path below which the archive's members lie (``b""`` or ``b"pg_tblspc/16385/"``).
    Links are dropped: a restore makes its own from its plan (PostgreSQL decision 1).
    """

    def __init__(self, receiver: FileReceiver, prefix: bytes) -> None:
        self._receiver = receiver
        self._prefix = prefix
        self._header = bytearray()
        self._remaining = 0  # bytes of the present file still to come
        self._padding = 0
        self._ended = False

    def feed(self, data: memoryview) -> None:
        """Take the archive's next bytes. Raises: StreamBroken for what is no tar."""
        position, end = 0, len(data)
        if end < self._remaining:  # nearly every piece: the middle of a file
            self._receiver.write(data)
            self._remaining -= end
            return
        while position < end:
            if self._remaining:
                size = min(self._remaining, end - position)
                self._receiver.write(data[position : position + size])
                position += size
                self._remaining -= size
                if not self._remaining:
                    self._receiver.end_file()
            elif self._padding:
                size = min(self._padding, end - position)
                position += size
                self._padding -= size
            else:
                size = min(BLOCK - len(self._header), end - position)
                self._header += data[position : position + size]
                position += size
                if len(self._header) == BLOCK:
                    self._member(bytes(self._header))
                    self._header.clear()

    def finish(self) -> None:
        """The archive is over. Raises: StreamBroken when it stopped in the middle of something."""
        if self._remaining or self._padding or self._header:
            raise StreamBroken("read from server: the stream ended in the middle of a file")

    def _member(self, header: bytes) -> None:
        if not any(header):
            self._ended = True
            return
        if self._ended:
            raise StreamBroken("read from server: data after the end of an archive")
        # The sum of all bytes with the field itself as blanks; Adler-32's low half is that sum plus 1, modulo 65521.
        expected = _number(header[148:156]) + sum(header[148:156]) - 8 * 32 + 1
        if zlib.adler32(header) & 0xFFFF != expected % 65521:
            raise StreamBroken("read from server: a tar header is damaged")
        name = header[:100].split(b"\0", 1)[0].removeprefix(b"./").rstrip(b"/")
        mode = _number(header[100:108]) & 0o777  # a set-user-id bit from a server is nothing to restore as root
        size, kind = _number(header[124:136]), header[156:157]
        if kind == _DIRECTORY:
            if name and name != b".":
                self._receiver.directory(self._prefix + name, mode)
        elif kind == _REGULAR:
            self._receiver.begin_file(self._prefix + name, mode, size)
            self._remaining, self._padding = size, -size % BLOCK
            if not size:
                self._receiver.end_file()
        elif kind != _LINK:
            raise StreamBroken(f"read from server: a tar member of unknown kind {kind!r}")


def _number(octets: bytes) -> int:
    """A field in octal, or in base 256 where its first bit says so. Raises: StreamBroken."""
    if octets[0] & 0x80:
        return int.from_bytes(octets[1:], "big")
    digits = octets.strip(b" \0") or b"0"
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise StreamBroken("read from server: a tar header is damaged")
