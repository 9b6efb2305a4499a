"""Bytes and a key in, a signature out; bytes, a signature and the federation's authority in, nothing or the reason why
not, out.

ECDSA on P-384 with SHA-384 (FIPS 186-5), as DER. The signer's certificate travels beside the signature: a site has the
authority's alone, from the day that it joined.
"""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared.errors import DataError, RefusedError
from shared.trust.certificates import Pair, days_left, issue_signer

RENEW_SIGNER_DAYS = 365
_ALGORITHM = ec.ECDSA(hashes.SHA384())
_AGAIN = "fetch the file from the coordinator again"


def create_signer(authority: Pair, now: dt.datetime) -> Pair:
    """A new key and the authority's certificate for it, for signing releases and nothing else."""
    return issue_signer(authority, now)


def sign(key_pem: bytes, content: bytes) -> bytes:
    """The signature of `content`, DER (about 104 bytes); no two are equal."""
    key = serialization.load_pem_private_key(key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(content, _ALGORITHM)


def still_signs(ca_pem: bytes, signer: Pair, now: dt.datetime) -> bool:
    """Whether what the signer signs now is believed for a year, or for as long as the authority is."""
    try:
        verify(ca_pem, signer.certificate, b"", sign(signer.key, b""), now)
    except (RefusedError, ValueError):
        return False
    left = days_left(signer.certificate, now)
    return left >= min(RENEW_SIGNER_DAYS, days_left(ca_pem, now))


def verify(ca_pem: bytes, signer_pem: bytes, content: bytes, signature: bytes, now: dt.datetime) -> None:
    """(1) the signature is the signer's, (2) the signer is of this federation, (3) may sign releases, (4) today.

    Raises RefusedError with the first that does not hold; DataError where `ca_pem` is no certificate.
    """
    try:
        authority = x509.load_pem_x509_certificate(ca_pem)
    except ValueError:
        raise DataError("ca.crt is not a PEM certificate; ask the coordinator for ca.crt again") from None
    signer = _signer(signer_pem)
    # (1)
    key = signer.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(signature, content, _ALGORITHM)
    except InvalidSignature:
        raise RefusedError(f"the signature is wrong: the manifest is not what was signed; {_AGAIN}") from None
    # (2)
    try:
        signer.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise RefusedError(
            "signed for another federation: the signer's certificate is not of the authority in this folder's ca.crt; "
            "ask your own coordinator for the file"
        ) from None
    # (3)
    if not _signs_releases(signer):
        raise RefusedError(
            "the signer's certificate is of this federation but not for signing releases; ask the coordinator who "
            "signed it"
        )
    # (4)
    for certificate in (signer, authority):
        if now > certificate.not_valid_after_utc:
            raise RefusedError(
                f"the signer's certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}; ask the coordinator "
                "for a newer release"
            )
        if now < certificate.not_valid_before_utc:
            raise RefusedError(
                f"the signer's certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d}, which is to "
                "come; set this machine's clock"
            )


def _signer(signer_pem: bytes) -> x509.Certificate:
    """A certificate of a P-384 key, in the one form that PEM writes it in: what is around it is signed by nobody."""
    try:
        signer = x509.load_pem_x509_certificate(signer_pem)
        key = signer.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise RefusedError(f"the signature is wrong: signer.pem is not a certificate; {_AGAIN}") from None
    alone = signer.public_bytes(serialization.Encoding.PEM) == signer_pem
    if not alone or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise RefusedError(
            f"the signature is wrong: signer.pem is not one certificate of a P-384 key and nothing else; {_AGAIN}"
        )
    return signer


def _signs_releases(signer: x509.Certificate) -> bool:
    try:
        extensions = signer.extensions
        leaf = not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        signs = extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
        purposes = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return leaf and signs and purposes == [ExtendedKeyUsageOID.CODE_SIGNING]
