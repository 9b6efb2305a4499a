"""Certificates that sites show: a request made at the site in, the authority's certificate out, and its early end.

The private key of a site is made at the site and stays there; what travels is a request (PKCS #10, RFC 2986). The
authority takes nothing from a request but the key: name, purpose and life are its own. Who may no longer come in stands
in a revocation list (RFC 5280 section 5), which the gateway reads.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import DataError, RefusedError
from shared.trust.certificates import Pair, certify, days_left, key_pem, load
from shared.trust.names import checked_name, is_name

SITE_DAYS = 180
ORGANISATION = "Wardround site"
"""Organisation in the name of a site's certificate: neither a server nor a signer has it."""
MAX_REQUEST = 4096  # bytes; ours are about 400


@dataclass(frozen=True, slots=True)
class SiteCertificate:
    """What a site's certificate says, once it was believed."""

    site: str
    serial: int
    starts: dt.datetime
    ends: dt.datetime

    def renews(self, now: dt.datetime) -> bool:
        """Whether the last third of its life has begun."""
        return now >= self.ends - (self.ends - self.starts) / 3

    def days_left(self, now: dt.datetime) -> int:
        return (self.ends - now).days


def create_request(site: str) -> tuple[bytes, bytes]:
    """A request for a certificate (DER), and its new P-384 key (PEM), which must not leave the site."""
    key = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(site)).sign(key, hashes.SHA384())
    return request.public_bytes(serialization.Encoding.DER), key_pem(key)


def issue_site(authority: Pair, site: str, request: bytes, now: dt.datetime, days: int = SITE_DAYS) -> bytes:
    """The authority's certificate (PEM) for the key of a request, which must be, in this order,

    (1) small and a request   (2) for this very name   (3) without extensions or attributes of its own
    (4) of a P-384 key        (5) signed by that key.  Raises RefusedError, or DataError for (1).
    """
    # (1)
    if len(request) > MAX_REQUEST:
        raise DataError(f"the certificate request has {len(request)} bytes, expected at most {MAX_REQUEST}")
    try:
        csr = x509.load_der_x509_csr(request)
        subject, wanted = csr.subject, list(csr.attributes)
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise DataError("the certificate request cannot be read; expected PKCS #10 as DER") from None
    # (2)
    if subject != _subject(site):
        raise RefusedError(f"the certificate request is for another name; expected site {site!r} and nothing else")
    # (3)
    if wanted:
        raise RefusedError("the certificate request asks for extensions; what a certificate is for, the authority says")
    # (4)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise RefusedError("the certificate request is not of a P-384 key; make it with: wardround-site join")
    # (5)
    if not csr.is_signature_valid:
        raise RefusedError("the certificate request is not signed by its own key")
    left = days_left(authority.certificate, now)
    return certify(authority, _subject(site), key, ExtendedKeyUsageOID.CLIENT_AUTH, now, min(days, left))


def read_site_certificate(certificate: bytes, authority: bytes, now: dt.datetime) -> SiteCertificate:
    """(1) of this federation's authority, (2) a site's, (3) in force today: what it says, or RefusedError."""
    one, issuer = load(certificate), load(authority)
    # (1)
    try:
        one.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise RefusedError("the certificate is of another authority than this federation's") from None
    # (2)
    names = one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    site = str(names[0].value) if len(names) == 1 else ""
    if not is_name(site) or one.subject != _subject(site) or not _for_client(one):
        raise RefusedError("the certificate is of this federation but not a site's")
    # (3)
    found = SiteCertificate(site, one.serial_number, one.not_valid_before_utc, one.not_valid_after_utc)
    if now > found.ends:
        raise RefusedError(
            f"the certificate of site {site} ended on {found.ends:%Y-%m-%d}; the coordinator revokes the site and "
            "invites it anew"
        )
    if now < found.starts:
        raise RefusedError(f"the certificate of site {site} begins on {found.starts:%Y-%m-%d}; set this clock")
    return found


def belongs(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate (PEM) is for a private key (PEM)."""
    private = serialization.load_pem_private_key(key, password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return load(certificate).public_key() == private.public_key()


def revocation_list(authority: Pair, revoked: Iterable[tuple[int, dt.datetime]], now: dt.datetime) -> bytes:
    """The authority's list of certificates (serial number, when) that no longer count, PEM.

    It is in force for as long as the authority is: a list that ended would lock out everybody, and the coordinator
    writes a new one with every change.
    """
    issuer = load(authority.certificate)
    key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(issuer.not_valid_after_utc)
    )
    for serial, when in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        )
    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def _subject(site: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, checked_name("site name", site)),
        ]
    )


def _for_client(certificate: x509.Certificate) -> bool:
    try:
        extensions = certificate.extensions
        leaf = not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        purposes = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return leaf and purposes == [ExtendedKeyUsageOID.CLIENT_AUTH]
