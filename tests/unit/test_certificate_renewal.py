"""When a certificate is due, read from the certificate itself."""

import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from failback.transport.renewal import Due, Validity, due, parse_validity, pause_seconds

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
YEAR = Validity(NOW, NOW + 360 * DAY)


@pytest.mark.parametrize(
    ("days", "wanted"),
    [(-5, Due.NOTHING), (0, Due.NOTHING), (239, Due.NOTHING), (240, Due.RENEW), (359, Due.RENEW), (360, Due.ENROL)],
)
def test_due(days: int, wanted: Due) -> None:
    assert due(YEAR, NOW + days * DAY) is wanted


def test_there_are_many_tries_in_the_last_third() -> None:
    assert pause_seconds(YEAR) == 3600
    minute = Validity(NOW, NOW + dt.timedelta(seconds=60))
    assert 20 / pause_seconds(minute) >= 20


@pytest.mark.parametrize("end", [NOW + 90 * DAY, dt.datetime(2061, 7, 9, 1, 2, 3, tzinfo=dt.UTC)])
def test_validity_as_the_library_reads_it(end: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = builder.serial_number(1 << 150).not_valid_before(NOW).not_valid_after(end).sign(key, hashes.SHA256())
    der = ssl.PEM_cert_to_DER_cert(made.public_bytes(serialization.Encoding.PEM).decode())
    assert parse_validity(der) == Validity(made.not_valid_before_utc, made.not_valid_after_utc) == Validity(NOW, end)
    for cut in range(0, 120, 7):
        with pytest.raises(ValueError):
            parse_validity(der[:cut])
