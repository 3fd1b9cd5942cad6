"""Certificates of tests, made by openssl where there is one."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pem:
    """A certificate that vouches for itself, and its key."""

    chain: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        """Return what a client needs that knows it."""
        return ssl.create_default_context(cafile=str(self.chain))


def make_pem(directory: Path, name: str = "localhost", password: str = "") -> Pem:
    """Make one for `localhost` and 127.0.0.1; NAME tells several apart."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make certificates")
    pem = Pem(directory / "tls.crt", directory / "tls.key")
    names = f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"
    protection = ("-passout", f"pass:{password}") if password else ("-nodes",)
    files = "-keyout", str(pem.key), "-out", str(pem.chain)
    kind = "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "3650"
    subprocess.run([openssl, *kind, *protection, *files, "-subj", *names], check=True, capture_output=True)
    pem.key.chmod(0o600)
    return pem
