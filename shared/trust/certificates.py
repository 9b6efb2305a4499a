"""The federation's own certificate authority: names in, PEM out.

One authority per federation signs server certificates, those that releases are signed with, and those that sites show
(site_certificates.py). The authority lives ten years, so that a new certificate never asks a site for anything (RFC
5280 section 4.2 for the extensions). Time is read once by the caller and passed in as `now`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import ConfigError, DataError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # what browsers and auditors accept at most
SIGNER_DAYS = 1825
RENEW_BEFORE_DAYS = 30
CLOCK_SKEW = dt.timedelta(hours=1)  # a site's clock may be behind
_DNS_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.I)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def create_authority(name: str, now: dt.datetime, days: int = AUTHORITY_DAYS) -> Pair:
    """A self-signed authority that may sign leaf certificates and nothing below another authority (path length 0)."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Wardround authority of {name}")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _unsigned(subject, subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), key_pem(key))


def issue_server(authority: Pair, names: Sequence[str], now: dt.datetime, days: int = SERVER_DAYS) -> Pair:
    """A server certificate for DNS names and IP addresses, signed by the authority; not usable by a client or a CA."""
    alternatives = x509.SubjectAlternativeName([general_name(name) for name in names])
    return _issued(authority, "Wardround coordinator", ExtendedKeyUsageOID.SERVER_AUTH, now, days, alternatives)


def issue_signer(authority: Pair, now: dt.datetime, days: int = SIGNER_DAYS) -> Pair:
    """A certificate that releases are signed with; it is for no host, and ends no later than the authority does.

    Its purpose is code signing (RFC 5280 section 4.2.1.12, the nearest that there is): it keeps apart what else the
    authority issues, for a server's certificate signs as well, but handshakes.
    """
    left = days_left(authority.certificate, now)
    return _issued(authority, "Wardround releases", ExtendedKeyUsageOID.CODE_SIGNING, now, min(days, left))


def _issued(
    authority: Pair, name: str, purpose: x509.ObjectIdentifier, now: dt.datetime, days: int,
    *further: x509.ExtensionType,
) -> Pair:  # fmt: skip
    """A leaf certificate for one purpose, and its new key."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return Pair(certify(authority, subject, key.public_key(), purpose, now, days, *further), key_pem(key))


def certify(
    authority: Pair, subject: x509.Name, key: ec.EllipticCurvePublicKey, purpose: x509.ObjectIdentifier,
    now: dt.datetime, days: int, *further: x509.ExtensionType,
) -> bytes:  # fmt: skip
    """The authority's certificate for a key: a leaf, for one purpose, with nothing in it that the key's owner chose."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    unsigned = _unsigned(subject, issuer.subject, key, now, days)
    for extension in further:
        unsigned = unsigned.add_extension(extension, critical=False)
    certificate = (
        unsigned.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(issuer_key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def general_name(name: str) -> x509.GeneralName:
    """An IP address or a DNS name; raises ConfigError for anything else (also wildcards: a coordinator has a name)."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(name):
        raise ConfigError(f"host must be an IP address or a DNS name, got {name!r}")
    return x509.DNSName(name.lower())


def days_left(certificate: bytes, now: dt.datetime) -> int:
    """Whole days until a PEM certificate ends (negative: it has ended); raises DataError when it is not one."""
    return (load(certificate).not_valid_after_utc - now).days


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate's DER, in hexadecimal: what names an authority in a release."""
    return load(certificate).fingerprint(hashes.SHA256()).hex()


def host_names(certificate: bytes) -> tuple[str, ...]:
    """The names and addresses that a server certificate is for."""
    names = load(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def is_authority(certificate: bytes) -> bool:
    """Whether a PEM certificate may sign others; False also when it says nothing about it."""
    try:
        return load(certificate).extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def load(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise DataError("not a PEM certificate; ask the coordinator for ca.crt again") from None


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,  # the handshake of TLS 1.3, or a release
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
