"""A private key file in, a function that signs out; a key as an OpenSSH line and a signature in, yes or no out.

ECDSA on P-384 with SHA-384 (FIPS 186-5), as shared/trust/signing.py, for signers that are known by their key alone: a
site's, which never needs a certificate to be believed by who has its key.pub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared.errors import DataError
from shared.trust.keystore import CURVE, public_line

_ALGORITHM = ec.ECDSA(hashes.SHA384())


def signer_of(key: bytes) -> Callable[[bytes], bytes]:
    """Signs with a P-384 private key, OpenSSH or PEM; read once. DataError where it is not one."""
    private = _private(key)
    return lambda content: private.sign(content, _ALGORITHM)


def line_of(key: bytes) -> str:
    """The public half of a private key: what it signs is verified with."""
    return public_line(_private(key).public_key())


def _private(key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        load = serialization.load_ssh_private_key if b"OPENSSH" in key else serialization.load_pem_private_key
        private = load(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, CURVE):
        raise DataError("the key file is not a P-384 private key; restore it from a backup of the folder")
    return private


def signed_by(line: str, content: bytes, signature: bytes) -> bool:
    """Whether the owner of the key in `line` signed `content`."""
    try:
        key = serialization.load_ssh_public_key(line.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, content, _ALGORITHM)
    except (ValueError, UnsupportedAlgorithm, AssertionError, InvalidSignature):
        return False
    return True


def lines_of(authority: bytes, certificates: Sequence[str]) -> tuple[str, ...]:
    """Keys of those PEM certificates that the authority issued to sign with; the others are left out.

    The purpose counts: sites and servers have certificates of the same authority.
    """
    try:
        issuer = x509.load_pem_x509_certificate(authority)
    except ValueError:
        raise DataError("ca.crt is not a PEM certificate; restore it from a backup of the folder") from None
    lines = []
    for pem in certificates:
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            certificate.verify_directly_issued_by(issuer)
            purposes = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
            key = certificate.public_key()
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
            continue
        signs = purposes == [ExtendedKeyUsageOID.CODE_SIGNING]
        if signs and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVE):
            lines.append(public_line(key))
    return tuple(lines)
