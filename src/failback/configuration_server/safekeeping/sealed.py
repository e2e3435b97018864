"""A sealed stream: bytes encrypted and authenticated with a passphrase, in chunks, so that a large backup needs little memory.

The key is scrypt's of the passphrase and a fresh salt; each chunk is AES-256-GCM under a counter, with the file's head and
"is the last" as additional data: a chunk that was changed, left out, repeated or cut off at the end does not open.

    head:   magic ``FBSEALED`` · u8 version · u8 log2(N) · u8 r · u8 p · 16 bytes salt
    chunk:  u32 length (big endian; highest bit: the last) · ciphertext with its 16 byte tag
"""

from __future__ import annotations

import io
import os
import struct
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from failback.errors import AuthenticationError, IntegrityError

MAGIC = b"FBSEALED"
VERSION = 1
CHUNK_BYTES = 1 << 20
_HEAD = struct.Struct("!8sBBBB16s")
_LENGTH = struct.Struct("!I")
_LAST = 1 << 31
_LOG_N, _R, _P = 16, 8, 1
"""64 MiB and about 0.2 s a try."""
_MOST_LOG_N, _MOST_R, _MOST_P = 20, 16, 4
_TAG_BYTES = 16


class SealingWriter(io.RawIOBase):
    """Writes into ``target``; what was written is whole only after :meth:`close`, which leaves ``target`` open."""

    def __init__(self, target: BinaryIO, passphrase: str) -> None:
        super().__init__()
        self._target = target
        self._head = _HEAD.pack(MAGIC, VERSION, _LOG_N, _R, _P, os.urandom(16))
        self._cipher = AESGCM(_key(self._head, passphrase))
        self._count = 0
        self._waiting = bytearray()
        target.write(self._head)

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        view = memoryview(content)  # type: ignore[arg-type]
        self._waiting += view
        while len(self._waiting) > CHUNK_BYTES:
            self._seal(bytes(self._waiting[:CHUNK_BYTES]), last=False)
            del self._waiting[:CHUNK_BYTES]
        return view.nbytes

    def finish(self) -> None:
        """Seal the last chunk; nothing may be written after it."""
        self._seal(bytes(self._waiting), last=True)
        self._waiting.clear()

    def _seal(self, plain: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._count), plain, _bound(self._head, last))
        self._target.write(_LENGTH.pack(len(sealed) | (_LAST if last else 0)) + sealed)
        self._count += 1


class OpeningReader(io.RawIOBase):
    """Reads what :class:`SealingWriter` wrote. Raises AuthenticationError (wrong passphrase) and IntegrityError."""

    def __init__(self, source: BinaryIO, passphrase: str) -> None:
        super().__init__()
        self._source = source
        self._head = source.read(_HEAD.size)
        if len(self._head) < _HEAD.size or not self._head.startswith(MAGIC):
            raise IntegrityError(
                "this file is no backup of a configuration server", remedy="name the file of failback backup"
            )
        if self._head[len(MAGIC)] != VERSION:
            raise IntegrityError(
                f"the backup has version {self._head[len(MAGIC)]} of the format, this program knows {VERSION}",
                remedy="use the version of the program that made it, or a newer one",
            )
        self._cipher = AESGCM(_key(self._head, passphrase))
        self._count = 0
        self._opened = memoryview(b"")
        self._last = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._opened and not self._last:
            self._opened = memoryview(self._open())
        taken = min(len(target), len(self._opened))
        target[:taken] = self._opened[:taken]
        self._opened = self._opened[taken:]
        return taken

    def _open(self) -> bytes:
        raw = self._source.read(_LENGTH.size)
        length = _LENGTH.unpack(raw)[0] if len(raw) == _LENGTH.size else 0
        last, length = bool(length & _LAST), length & ~_LAST
        sealed = self._source.read(length) if _TAG_BYTES <= length <= CHUNK_BYTES + _TAG_BYTES else b""
        if not sealed or len(sealed) != length:
            raise IntegrityError("the backup is cut off or damaged", remedy="take another copy of it")
        try:
            plain = self._cipher.decrypt(_nonce(self._count), sealed, _bound(self._head, last))
        except InvalidTag:
            if self._count == 0:
                raise AuthenticationError(
                    "the backup does not open with this passphrase",
                    possible_causes="another passphrase was used, or the file is damaged at its beginning",
                    remedy="use the passphrase of the day on which it was made",
                ) from None
            raise IntegrityError("the backup is damaged", remedy="take another copy of it") from None
        self._count += 1
        self._last = last
        if last and self._source.read(1):
            raise IntegrityError("the backup has bytes behind its end", remedy="take another copy of it")
        return plain


def _key(head: bytes, passphrase: str) -> bytes:
    _magic, _version, log_n, r, p, salt = _HEAD.unpack(head)
    if not (10 <= log_n <= _MOST_LOG_N and 1 <= r <= _MOST_R and 1 <= p <= _MOST_P):
        raise IntegrityError("the backup's head is damaged", remedy="take another copy of it")
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=r, p=p).derive(passphrase.encode("utf-8"))


def _nonce(count: int) -> bytes:
    return count.to_bytes(12, "big")


def _bound(head: bytes, last: bool) -> bytes:
    return head + (b"\x01" if last else b"\x00")
