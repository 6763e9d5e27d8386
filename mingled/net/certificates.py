"""The certificates of a realm: its authority, made from the realm's seed, and leaves of it.

Whoever knows the secrets makes the same authority, so nobody hands out anything. A leaf is made by
each daemon for itself. They are valid at any time: a machine's wall clock may be years off, and how
long a key counts is decided by who has it.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mingled.core.secrets import Realm

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""FIPS 186-5, P-256: the order of its group."""

FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""RFC 5280, 4.1.2.5: the time of what has no well-defined expiration date."""


class Authority(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def issued(self, der: bytes | None) -> bool:
        """Whether that certificate (DER; None: none was shown) is a leaf of ours."""
        if der is None:
            return False
        try:
            x509.load_der_x509_certificate(der).verify_directly_issued_by(self.certificate)
        except (InvalidSignature, TypeError, ValueError):
            return False
        return True


def authority_of(realm: Realm) -> Authority:
    """The same for all who know the realm's seed, but for its own signature."""
    scalar = int.from_bytes(realm.seed, "big") % (P256_ORDER - 1) + 1
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    name = _name(f"mingled {realm.label}")
    builder = _builder(name, name, key.public_key(), key.public_key(), serial=1)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def leaf_of(authority: Authority, label: str) -> bytes:
    """A new certificate and its private key, as PEM, for both ends of a connection."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(
        _name(label),
        authority.certificate.subject,
        key.public_key(),
        authority.key.public_key(),
        serial=x509.random_serial_number(),
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(label)]), False)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    by: ec.EllipticCurvePublicKey,
    *,
    serial: int,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public,
        serial_number=serial,
        not_valid_before=FROM,
        not_valid_after=UNTIL,
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(by)
    return builder.add_extension(issued_by, critical=False)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
