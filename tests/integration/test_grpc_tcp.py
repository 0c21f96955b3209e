"""gRPC on TCP: plain, with TLS, and only for a client of one name."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from orlop.api.services.version.v1 import version_pb2
from orlop.core.version import VERSION
from tools import host
from tools.daemons import DaemonError, Orlopd

VERSION_PATH = "/containerd.services.version.v1.Version/Version"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate for localhost and two clients'."""
    openssl = host.find("openssl")
    if openssl is None:
        pytest.skip("openssl is not there")
    directory = tmp_path_factory.mktemp("certificates")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], check=True, capture_output=True, cwd=directory)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    for name in ("localhost", "friend", "stranger"):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (directory / f"{name}.ext").write_text(f"subjectAltName=DNS:{name}\n")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        run("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
    return directory


def settings(**values: object) -> str:
    lines = [f'{key} = "{value}"' for key, value in {"address": "127.0.0.1:0", **values}.items()]
    return "\n".join(['[plugins."io.containerd.server.v1.grpc-tcp"]', *lines, ""])


def port(daemon: Orlopd) -> int:
    found = re.search(r'msg="serving gRPC on TCP" .*address=127\.0\.0\.1:(\d+)', daemon.log)
    assert found is not None
    return int(found[1])


def version(channel: Any) -> str:
    """Any: grpcio's stubs do not know its channels' generic calls."""
    with channel:
        answer = channel.unary_unary(VERSION_PATH)(b"", timeout=20)
    return str(version_pb2.VersionResponse.FromString(answer).version)


def secure(daemon: Orlopd, certificates: Path, name: str = "") -> Any:
    pair = [(certificates / f"{name}.{kind}").read_bytes() for kind in ("key", "pem")] if name else [None, None]
    credentials: Any = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes(), *pair)
    return grpc.secure_channel(f"localhost:{port(daemon)}", credentials, options=[("grpc.enable_http_proxy", 0)])


def test_plain(new_orlopd: Callable[..., Orlopd]) -> None:
    daemon = new_orlopd(config=settings())
    plain: Any = grpc.insecure_channel(f"127.0.0.1:{port(daemon)}", options=[("grpc.enable_http_proxy", 0)])
    assert version(plain) == VERSION
    assert "without TLS: whoever can connect is root here" in daemon.log


def test_tls_and_a_client_of_one_name(new_orlopd: Callable[..., Orlopd], certificates: Path) -> None:
    pair = {"tls_cert": certificates / "localhost.pem", "tls_key": certificates / "localhost.key"}
    daemon = new_orlopd(config=settings(**pair))
    assert version(secure(daemon, certificates)) == VERSION
    daemon = new_orlopd(config=settings(**pair, tls_ca=certificates / "ca.pem"))
    assert version(secure(daemon, certificates, "stranger")) == VERSION
    with pytest.raises(grpc.RpcError):
        version(secure(daemon, certificates))
    daemon = new_orlopd(config=settings(**pair, tls_ca=certificates / "ca.pem", tls_common_name="friend"))
    assert version(secure(daemon, certificates, "friend")) == VERSION
    with pytest.raises(grpc.RpcError):
        version(secure(daemon, certificates, "stranger"))
    assert "common_name=stranger" in daemon.log


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"address": "nonsense"}, "must be host:port"),
        ({"tls_cert": "/no/such.pem"}, "/no/such.pem"),
        ({"tls_common_name": "x"}, "need tls_cert and tls_key"),
    ],
)
def test_settings_that_make_no_sense_stop_the_start(
    new_orlopd: Callable[..., Orlopd], values: dict[str, object], words: str
) -> None:
    with pytest.raises(DaemonError, match=words):
        new_orlopd(config=settings(**values))
