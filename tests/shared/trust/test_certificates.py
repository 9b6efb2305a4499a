"""Certificates: every extension that must be there, one by one, and those that must not."""

from __future__ import annotations

import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from shared.errors import ConfigError, DataError
from shared.trust import certificates

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
NAMES = ("fl.example.org", "127.0.0.1", "::1")


@pytest.fixture(scope="module")
def authority() -> certificates.Pair:
    return certificates.create_authority("test", NOW)


@pytest.fixture(scope="module")
def server(authority: certificates.Pair) -> certificates.Pair:
    return certificates.issue_server(authority, NAMES, NOW)


def load(pair: certificates.Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def test_authority_signs_certificates_and_nothing_else(authority: certificates.Pair) -> None:
    certificate = load(authority)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value.ca
    assert basic.value.path_length == 0  # no authority below this one
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert not usage.value.key_encipherment
    certificate.verify_directly_issued_by(certificate)


def test_authority_holds_no_extension_of_a_server(authority: certificates.Pair) -> None:
    present = {extension.oid for extension in load(authority).extensions}
    assert present == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }


def test_server_is_for_its_names_as_a_server_and_signs_nothing(
    authority: certificates.Pair, server: certificates.Pair
) -> None:
    certificate = load(server)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(name) for name in NAMES[1:]]
    assert certificates.host_names(server.certificate) == NAMES
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]  # not usable as a client certificate
    certificate.verify_directly_issued_by(load(authority))


def test_server_holds_no_further_extension(server: certificates.Pair) -> None:
    present = {extension.oid for extension in load(server).extensions}
    assert present == {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }


def test_keys_are_p384_and_differ(authority: certificates.Pair, server: certificates.Pair) -> None:
    keys = [load(pair).public_key() for pair in (authority, server)]
    assert all(isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1" for key in keys)
    assert keys[0] != keys[1]
    assert authority.key != server.key


def test_a_verifier_accepts_the_names_and_no_other(authority: certificates.Pair, server: certificates.Pair) -> None:
    """The oracle is cryptography's own path validation (RFC 5280, web PKI profile)."""
    store = PolicyBuilder().store(Store([load(authority)]))
    builder = store.time(NOW)
    builder.build_server_verifier(x509.DNSName("fl.example.org")).verify(load(server), [])
    with pytest.raises(VerificationError):
        builder.build_server_verifier(x509.DNSName("evil.example.org")).verify(load(server), [])
    later = store.time(NOW + dt.timedelta(days=certificates.SERVER_DAYS + 1))
    with pytest.raises(VerificationError):
        later.build_server_verifier(x509.DNSName("fl.example.org")).verify(load(server), [])


def test_another_authority_of_the_same_name_is_not_believed(server: certificates.Pair) -> None:
    with pytest.raises(InvalidSignature):
        load(server).verify_directly_issued_by(load(certificates.create_authority("test", NOW)))


def test_validity_covers_a_clock_that_is_an_hour_behind(server: certificates.Pair) -> None:
    assert load(server).not_valid_before_utc <= NOW - dt.timedelta(minutes=59)
    assert certificates.days_left(server.certificate, NOW) == certificates.SERVER_DAYS
    assert certificates.days_left(server.certificate, NOW + dt.timedelta(days=400)) < 0


@pytest.mark.parametrize("name", ["", "*.example.org", "a b", "http://x", "-x.org", "x..y", "x" * 70])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="IP address or a DNS name"):
        certificates.general_name(name)


def test_what_is_no_certificate_is_bad_data(server: certificates.Pair, authority: certificates.Pair) -> None:
    with pytest.raises(DataError, match="PEM certificate"):
        certificates.is_authority(b"-----BEGIN CERTIFICATE-----\nAAAA\n")
    assert certificates.is_authority(authority.certificate)
    assert not certificates.is_authority(server.certificate)
