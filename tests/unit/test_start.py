"""The command of pools asks the API as Prefect's own clients do: their headers, and whom they trust."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Api(HTTPServer):
    """Says of every run that it is over, to whoever sends the token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.headers: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        body = json.dumps({"state": {"type": "COMPLETED"}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def start(url: str, **settings: str) -> subprocess.CompletedProcess[str]:
    run = {"PREFECT_API_URL": url, "PREFECT__FLOW_RUN_ID": "00000000-0000-4000-8000-000000000001"}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.start"], env={**os.environ, **run, **settings},
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip


def test_a_header_that_prefects_clients_send_is_sent_in_the_place_of_the_password(api: Api) -> None:
    custom = json.dumps({"Authorization": "Bearer TOKEN", "X-Tenant": "7"})
    done = start(
        f"http://127.0.0.1:{api.server_port}/api",
        PREFECT_CLIENT_CUSTOM_HEADERS=custom, PREFECT_API_AUTH_STRING="user:password",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (headers,) = api.headers
    assert (headers["authorization"], headers["x-tenant"]) == ("Bearer TOKEN", "7")


def test_the_key_is_sent_where_there_is_one(api: Api) -> None:
    assert start(f"http://127.0.0.1:{api.server_port}/api", PREFECT_API_KEY="KEY").returncode == 0
    assert api.headers[0]["authorization"] == "Bearer KEY"


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


@pytest.mark.parametrize("trust", ["PREFECT_API_SSL_CERT_FILE", "PREFECT_API_TLS_INSECURE_SKIP_VERIFY"])
def test_an_authority_of_ones_own_is_trusted_as_prefects_settings_say(
    api: Api, authority: tuple[Path, Path], trust: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority)
    api.socket = context.wrap_socket(api.socket, server_side=True)
    done = start(
        f"https://127.0.0.1:{api.server_port}/api", **{trust: str(authority[0]) if "FILE" in trust else "true"}
    )
    assert (done.returncode, done.stderr, len(api.headers)) == (0, "", 1)
