"""Make what TLS and authentication need: certificates, SuperNode keys, SuperExec secrets.

    python certificates.py FOLDER superlink=superlink,localhost,127.0.0.1 --supernode supernode-1

makes in FOLDER: ``ca.crt`` and ``ca.key``; for every NAME=HOSTS a ``NAME.crt`` and ``NAME.key``
for these host names and addresses, and a ``NAME.superexec``, the secret that it shares with its
SuperExec; for every ``--supernode`` an authentication key pair ``NAME`` and ``NAME.pub``. What
exists is kept, so a host or a node can be added later. Private files have mode 0600. ``ca.key``
signs new certificates: keep it off the machines of the federation.
"""

from __future__ import annotations

import argparse
import os
import secrets
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CURVE = ec.SECP384R1()  # Flower accepts this family for SuperNode authentication


def main() -> None:
    """Read the command line and make the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("servers", nargs="*", metavar="NAME=HOST,HOST")
    parser.add_argument("--supernode", action="append", default=[], metavar="NAME")
    parser.add_argument("--days", type=int, default=365)
    options = parser.parse_args()
    options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = _authority(options.folder, options.days)
    for server in options.servers:
        name, _, hosts = server.partition("=")
        _server(options.folder, name, hosts.split(","), options.days, authority)
    for name in options.supernode:
        _node_key(options.folder / name)


Authority = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _authority(folder: Path, days: int) -> Authority:
    certificate, key = folder / "ca.crt", folder / "ca.key"
    if not certificate.exists():
        secret = ec.generate_private_key(CURVE)
        name = _name("fedsens federation CA")
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        built = (
            _builder(name, name, secret.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(secret, hashes.SHA256())
        )
        _write_private(key, _pem(secret))
        certificate.write_bytes(built.public_bytes(Encoding.PEM))
    secret_key = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(secret_key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(certificate.read_bytes()), secret_key


def _server(folder: Path, name: str, hosts: list[str], days: int, authority: Authority) -> None:
    path = folder / f"{name}.crt"
    if path.exists():
        return
    issuer, signer = authority
    secret = ec.generate_private_key(CURVE)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    built = (
        _builder(_name(hosts[0]), issuer.subject, secret.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(usage, critical=False)
        .add_extension(issued_by, critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write_private(folder / f"{name}.key", _pem(secret))
    _write_private(folder / f"{name}.superexec", secrets.token_hex(32).encode())
    path.write_bytes(built.public_bytes(Encoding.PEM))


def _node_key(path: Path) -> None:
    public = path.with_name(f"{path.name}.pub")
    if public.exists():
        return
    secret = ec.generate_private_key(CURVE)
    _write_private(path, secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public.write_bytes(
        secret.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509
        .CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # for clocks that are a little behind
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


if __name__ == "__main__":
    main()
