"""TLS of registries is verified: each certificate that must not be taken by its name, and no way to plain HTTP."""

import asyncio
import hashlib
import os
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from orlop.base.errdefs import FailedPreconditionError, UnauthenticatedError, UnavailableError
from orlop.core.remotes.credentials import Fixed, parse_user
from orlop.core.remotes.hosts import HostOptions, Tls
from orlop.core.remotes.repository import Retry
from orlop.core.remotes.resolver import RegistryResolver
from orlop.testing.registry import Fault, Registry, TokenRules, basic_header

NAME = "registry.invalid/team/app:1"
LAYER = hashlib.sha256(b"layer").digest() * 100
HERE = "IP:127.0.0.1"
PAST = ("20200101000000Z", "20200102000000Z")
NOW = ("20200101000000Z", "21000101000000Z")
FUTURE = ("20990101000000Z", "21000101000000Z")


async def no_sleep(_seconds):
    await asyncio.sleep(0)


@dataclass
class Authority:
    """A certificate authority in a directory of its own."""

    directory: Path

    def __post_init__(self):
        os.makedirs(self.directory / "new")
        (self.directory / "index").touch()
        self.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem"
            " -days 9 -subj /CN=tests"
        )

    @property
    def certificate(self):
        return self.directory / "ca.pem"

    def openssl(self, arguments):
        subprocess.run(["openssl", *arguments.split()], cwd=self.directory, check=True, capture_output=True)

    def context(self, name, *, names=HERE, dates=NOW):
        """A server's TLS with a certificate of this authority."""
        (self.directory / f"{name}.cnf").write_text(
            "[ca]\ndefault_ca = one\n[one]\ndatabase = index\nnew_certs_dir = new\nrand_serial = yes\n"
            "unique_subject = no\ndefault_md = sha256\npolicy = any\nx509_extensions = server\n"
            f"[any]\ncommonName = supplied\n[server]\nsubjectAltName = {names}\n"
        )
        self.openssl(
            f"req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.csr"
            " -subj /CN=127.0.0.1"
        )
        self.openssl(
            f"ca -batch -notext -config {name}.cnf -cert ca.pem -keyfile ca.key -in {name}.csr -out {name}.pem"
            f" -startdate {dates[0]} -enddate {dates[1]}"
        )
        return served(self.directory / f"{name}.pem", self.directory / f"{name}.key")


def served(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority") / "one")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority") / "other")


@pytest.fixture
def hosts(tmp_path, authority):
    """The host options by which `registry.invalid` is a registry of the test, trusted by the authority."""

    def of(registry, *, trusted=authority, tls=None):
        place = tmp_path / "registry.invalid"
        place.mkdir(exist_ok=True)
        ca = f'ca = "{trusted.certificate}"\n' if trusted else ""
        (place / "hosts.toml").write_text(f'server = "{registry.url}"\n{ca}')
        return HostOptions(hosts_dirs=(str(tmp_path),), tls=tls or Tls())

    return of


def resolver(options, **more):
    return RegistryResolver(hosts=options, retry=Retry(sleep=no_sleep), **more)


def run(scenario, **registry_arguments):
    async def with_registry():
        async with asyncio.timeout(60), Registry(**registry_arguments) as registry:
            return await scenario(registry)

    return asyncio.run(with_registry())


def refused(hosts, context, reason, **options):
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with resolver(hosts(registry, **options), credentials=Fixed(parse_user("joe:secret"))) as remote:
            with pytest.raises(UnavailableError, match=f"certificate not trusted: .*{reason}"):
                await remote.resolve(NAME)
        assert registry.seen == []  # nothing was said to it

    run(scenario, ssl_context=context)


def test_what_is_right_is_taken(hosts, authority):
    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        async with resolver(hosts(registry)) as remote:
            assert (await remote.resolve(NAME))[1] == target

    run(scenario, ssl_context=authority.context("right"))


def test_a_certificate_for_another_host_is_refused(hosts, authority):
    refused(hosts, authority.context("elsewhere", names="DNS:elsewhere.invalid"), "not valid for '127.0.0.1'")


def test_a_common_name_is_no_host_name(hosts, authority):
    """Only alternative names count; the common name of this one is right."""
    refused(hosts, authority.context("common", names="IP:127.0.0.2"), "not valid for '127.0.0.1'")


def test_an_expired_certificate_is_refused(hosts, authority):
    refused(hosts, authority.context("expired", dates=PAST), "expired")


def test_a_certificate_of_the_future_is_refused(hosts, authority):
    refused(hosts, authority.context("early", dates=FUTURE), "not yet valid")


def test_a_self_signed_certificate_is_refused(hosts, authority, tmp_path):
    subprocess.run(
        (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {tmp_path}/k"
            f" -out {tmp_path}/c -days 2 -subj /CN=127.0.0.1 -addext subjectAltName={HERE}"
        ).split(),
        check=True,
        capture_output=True,
    )
    context = served(tmp_path / "c", tmp_path / "k")
    refused(hosts, context, "self-signed")
    refused(hosts, context, "self-signed", trusted=None)

    async def scenario(registry):
        target = registry.add_image("team/app", "1", [])
        async with resolver(hosts(registry, tls=Tls(skip_verify=True))) as remote:
            assert (await remote.resolve(NAME))[1] == target

    run(scenario, ssl_context=context)


def test_a_certificate_of_another_authority_is_refused(hosts, stranger):
    refused(hosts, stranger.context("stranger"), "unable to get local issuer certificate")


def test_an_authority_of_one_host_is_none_of_anothers(hosts, authority, tmp_path):
    context = authority.context("neighbour")

    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        options = hosts(registry)
        place = tmp_path / "neighbour.invalid"
        place.mkdir()
        (place / "hosts.toml").write_text(f'server = "{registry.url}"\n')
        async with resolver(options) as remote:
            await remote.resolve(NAME)
            with pytest.raises(UnavailableError, match="certificate not trusted"):
                await remote.resolve("neighbour.invalid/team/app:1")

    run(scenario, ssl_context=context)


def test_old_versions_of_tls_are_refused(hosts, authority):
    context = authority.context("old")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1

    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with resolver(hosts(registry)) as remote:
            with pytest.raises(UnavailableError):
                await remote.resolve(NAME)
        assert registry.seen == []

    run(scenario, ssl_context=context)


def test_a_tag_is_not_resolved_behind_a_redirect_to_plain_http(hosts, authority):
    """Who answers there could name any digest."""

    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with Registry() as plain:
            plain.add_image("team/app", "1", [])
            registry.misbehave(Fault(path="/manifests/", redirect=plain.url + "{path}", times=-1))
            async with resolver(hosts(registry), credentials=Fixed(parse_user("joe:secret"))) as remote:
                with pytest.raises(FailedPreconditionError, match="would give up TLS"):
                    await remote.resolve(NAME)
            assert plain.seen == []

    run(scenario, ssl_context=authority.context("redirects"))


def test_a_blob_behind_a_redirect_to_plain_http_gets_no_credentials(hosts, authority):
    """Its digest is known, so its bytes may come from anywhere."""

    async def scenario(registry):
        layer = registry.add_blob("team/app", LAYER)
        target = registry.add_image("team/app", "1", [])
        async with Registry() as plain:
            plain.add_blob("team/app", LAYER)
            registry.misbehave(Fault(path="/blobs/", redirect=plain.url + "{path}", times=-1))
            async with resolver(hosts(registry), credentials=Fixed(parse_user("joe:secret"))) as remote:
                assert (await remote.resolve(NAME))[1] == target  # now the client has an authorization
                async with remote.fetcher(NAME).fetch(layer) as pieces:
                    assert b"".join([piece async for piece in pieces]) == LAYER
            assert registry.seen[-1].headers["authorization"] == basic_header("joe", "secret")
            assert len(plain.seen) == 1
            assert "authorization" not in plain.seen[0].headers

    run(scenario, ssl_context=authority.context("blobs"), basic=("joe", "secret"))


def test_credentials_do_not_go_to_a_token_server_over_plain_http(hosts, authority):
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with Registry(token=TokenRules()) as plain:
            registry.token = TokenRules(realm=f"{plain.url}/token")
            async with resolver(hosts(registry), credentials=Fixed(parse_user("joe:secret"))) as remote:
                with pytest.raises(UnauthenticatedError, match=r"not sent to .* over plain HTTP"):
                    await remote.resolve(NAME)
            assert plain.seen == []

    run(scenario, ssl_context=authority.context("tokens"))


def test_a_token_server_does_not_lead_to_plain_http(hosts, authority):
    async def scenario(registry):
        registry.add_image("team/app", "1", [])
        async with Registry(token=TokenRules()) as plain:
            registry.misbehave(Fault(path="/token", redirect=plain.url + "{path}", times=-1))
            async with resolver(hosts(registry), credentials=Fixed(parse_user("joe:secret"))) as remote:
                with pytest.raises(UnavailableError, match="would give up TLS"):
                    await remote.resolve(NAME)
            assert plain.seen == []

    run(scenario, ssl_context=authority.context("leading"), token=TokenRules())
