"""Signing releases: the reason of every refusal, and the extensions of the signer's certificate one by one."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from shared.errors import DataError, RefusedError
from shared.trust import certificates
from shared.trust.signing import create_signer, sign, verify

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
CONTENT = b'{"name":"liver"}'
AUTHORITY = certificates.create_authority("test", NOW)
SIGNER = create_signer(AUTHORITY, NOW)


def refused(reason: str, signer: certificates.Pair = SIGNER, now: dt.datetime = NOW, content: bytes = CONTENT) -> None:
    with pytest.raises(RefusedError, match=reason):
        verify(AUTHORITY.certificate, signer.certificate, content, sign(signer.key, CONTENT), now)


def test_what_the_signer_signed_passes_and_is_ecdsa_p384_sha384() -> None:
    """The oracle is cryptography's own verification, with the algorithm spelt out."""
    signature = sign(SIGNER.key, CONTENT)
    verify(AUTHORITY.certificate, SIGNER.certificate, CONTENT, signature, NOW)
    key = x509.load_pem_x509_certificate(SIGNER.certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"
    key.verify(signature, CONTENT, ec.ECDSA(hashes.SHA384()))
    with pytest.raises(InvalidSignature):
        key.verify(signature, CONTENT, ec.ECDSA(hashes.SHA256()))


def test_the_signer_signs_releases_and_is_neither_server_nor_authority() -> None:
    certificate = x509.load_pem_x509_certificate(SIGNER.certificate)
    extensions = certificate.extensions
    assert {extension.oid for extension in extensions} == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CODE_SIGNING]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(AUTHORITY.certificate))


def test_a_signer_ends_no_later_than_its_authority() -> None:
    short = certificates.create_authority("test", NOW, days=100)
    assert certificates.days_left(create_signer(short, NOW).certificate, NOW) == 100


def test_changed_content_and_every_flipped_bit_of_a_signature_are_a_wrong_signature() -> None:
    refused("signature is wrong", content=CONTENT + b" ")
    signature = sign(SIGNER.key, CONTENT)
    for place in range(len(signature)):
        flipped = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        with pytest.raises(RefusedError, match="signature is wrong"):
            verify(AUTHORITY.certificate, SIGNER.certificate, CONTENT, flipped, NOW)
    for odd in (b"", b"0" * 104, signature + b"\0"):
        with pytest.raises(RefusedError, match="signature is wrong"):
            verify(AUTHORITY.certificate, SIGNER.certificate, CONTENT, odd, NOW)


def test_another_signer_of_the_same_federation_did_not_sign_it() -> None:
    other = create_signer(AUTHORITY, NOW)
    with pytest.raises(RefusedError, match="signature is wrong"):
        verify(AUTHORITY.certificate, other.certificate, CONTENT, sign(SIGNER.key, CONTENT), NOW)


def test_another_federation_of_the_same_name_is_refused() -> None:
    refused("another federation", create_signer(certificates.create_authority("test", NOW), NOW))


def test_an_expired_signer_and_one_from_the_future_are_refused() -> None:
    later = NOW + dt.timedelta(days=certificates.SIGNER_DAYS + 1)
    refused("expired on 2031-11-21", now=later)
    refused("set this machine's clock", now=NOW - dt.timedelta(days=1))
    verify(AUTHORITY.certificate, SIGNER.certificate, CONTENT, sign(SIGNER.key, CONTENT), later - dt.timedelta(days=2))


def test_a_server_of_the_federation_and_the_authority_itself_sign_no_releases() -> None:
    refused("not for signing releases", certificates.issue_server(AUTHORITY, ("localhost",), NOW))
    refused("not for signing releases", AUTHORITY)


@pytest.mark.parametrize("missing", [x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage])
def test_a_certificate_that_leaves_its_purpose_open_is_refused(missing: type[x509.ExtensionType]) -> None:
    certificate = x509.load_pem_x509_certificate(SIGNER.certificate)
    issuer = x509.load_pem_x509_certificate(AUTHORITY.certificate)
    issuer_key = serialization.load_pem_private_key(AUTHORITY.key, password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(issuer.subject)
        .public_key(certificate.public_key())
        .serial_number(7)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for extension in certificate.extensions:
        if not isinstance(extension.value, missing):
            builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(issuer_key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)
    refused("not for signing releases", certificates.Pair(made, SIGNER.key))


def test_what_is_no_certificate_or_more_than_one_is_refused() -> None:
    signature = sign(SIGNER.key, CONTENT)
    for pem in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n", SIGNER.certificate * 2, SIGNER.certificate + b"\n"):
        with pytest.raises(RefusedError, match="signature is wrong"):
            verify(AUTHORITY.certificate, pem, CONTENT, signature, NOW)
    with pytest.raises(DataError, match="ask the coordinator"):
        verify(b"nothing", SIGNER.certificate, CONTENT, signature, NOW)


def test_a_key_of_another_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.load_pem_x509_certificate(SIGNER.certificate).subject
    other = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    with pytest.raises(RefusedError, match="P-384"):
        verify(AUTHORITY.certificate, other, CONTENT, key.sign(CONTENT, ec.ECDSA(hashes.SHA384())), NOW)
