"""TLS 1.3 (RFC 8446) with certificates that nobody issued: a node's key is its own name.

A listener shows a certificate that it signed itself with its Ed25519 key. TLS proves that it holds
that key, and the PeerId is a hash of it, so there is nothing for an authority to say. Names and
dates in the certificate mean nothing and are not read.
"""

from __future__ import annotations

import datetime
import functools
import os
import secrets
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from swarmd.identity import Identity, PeerId

__all__ = ["Certificate", "dialler_context", "peer_id_of"]

_FIRST = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_LAST = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)


class Certificate:
    """A self-signed certificate of an identity: `der`, and the listener's `context` with it."""

    def __init__(self, identity: Identity) -> None:
        key = Ed25519PrivateKey.from_private_bytes(identity.private_bytes())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarmd")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_FIRST)
            .not_valid_after(_LAST)
            .sign(key, None)
        )
        self.der = certificate.public_bytes(serialization.Encoding.DER)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0  # no resumption: every link proves everything anew
        _load(self.context, certificate.public_bytes(serialization.Encoding.PEM), key)


def _load(context: ssl.SSLContext, pem: bytes, key: Ed25519PrivateKey) -> None:
    """`ssl` reads keys from files only: one of mode 0600, encrypted under a password that never
    leaves this process, deleted at once."""
    password = secrets.token_hex(16).encode()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    descriptor, path = tempfile.mkstemp(prefix="swarmd-", suffix=".pem")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem + secret)
        context.load_cert_chain(path, password=password)
    finally:
        os.unlink(path)


@functools.cache
def dialler_context() -> ssl.SSLContext:
    """For dialling: TLS 1.3 only, and no authority asked; who answers is checked by its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_id_of(der: bytes | None) -> PeerId:
    """Who showed this certificate. Raises ValueError if it is not one of an Ed25519 key."""
    if der is None:
        raise ValueError("no certificate was shown")
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except Exception as error:  # cryptography raises several kinds for what it cannot read
        raise ValueError("an unreadable certificate") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a certificate whose key is not Ed25519")
    return PeerId.of_public_key(key.public_bytes_raw())
