"""What is sealed opens again with the passphrase, and every change of it is noticed."""

from __future__ import annotations

import io
import os

import pytest

from failback.configuration_server.safekeeping import sealed
from failback.errors import AuthenticationError, ConfigurationError, IntegrityError
from failback.transport.repoint import rewritten

SECRET = "correct horse battery"
HEAD_BYTES = 28


def seal(content: bytes) -> bytes:
    target = io.BytesIO()
    writer = sealed.SealingWriter(target, SECRET)
    writer.write(content)
    writer.finish()
    return target.getvalue()


def opened(content: bytes, secret: str = SECRET) -> bytes:
    return io.BufferedReader(sealed.OpeningReader(io.BytesIO(content), secret)).read()


@pytest.mark.parametrize("length", [0, 1, sealed.CHUNK_BYTES, sealed.CHUNK_BYTES + 1, 3 * sealed.CHUNK_BYTES + 7])
def test_round_trip(length: int) -> None:
    content = os.urandom(length)
    assert opened(seal(content)) == content


def test_no_change_goes_unseen() -> None:
    whole = seal(bytes(2 * sealed.CHUNK_BYTES + 5))
    chunk = 4 + sealed.CHUNK_BYTES + 16
    with pytest.raises(AuthenticationError):
        opened(whole, "another passphrase")
    last_left_out = whole[: HEAD_BYTES + 2 * chunk]
    one_left_out = whole[: HEAD_BYTES + chunk] + whole[HEAD_BYTES + 2 * chunk :]
    swapped = (
        whole[:HEAD_BYTES] + whole[HEAD_BYTES + chunk : HEAD_BYTES + 2 * chunk] + whole[HEAD_BYTES : HEAD_BYTES + chunk]
    )
    for damaged in (
        whole[:-1],
        whole + b"x",
        last_left_out,
        one_left_out,
        swapped + whole[HEAD_BYTES + 2 * chunk :],
        b"",
    ):
        with pytest.raises((IntegrityError, AuthenticationError)):
            opened(damaged)
    for place in (3, 9, 20, HEAD_BYTES, HEAD_BYTES + 100, HEAD_BYTES + chunk + 9, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        with pytest.raises((IntegrityError, AuthenticationError)):
            opened(bytes(changed))


def test_only_the_url_of_the_right_table_is_rewritten() -> None:
    before = (
        'url = "top"\n[other]\nurl = "other"\n[configuration_server] # c\n# url = "x"\n'
        'url  = "https://a:1" # why\nca_file = "c"\n'
    )
    after = rewritten(before, "https://b")
    assert after == before.replace('"https://a:1"', '"https://b"')
    with pytest.raises(ConfigurationError):
        rewritten('[other]\nurl = "a"\n', "https://b")
