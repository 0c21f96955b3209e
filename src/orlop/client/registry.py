"""How a registry is reached: flags and files, made into a resolver.

`aiohttp` and with it asyncio are imported by the resolver's first request, so only by those who pull or push.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import InvalidArgumentError

if TYPE_CHECKING:
    from orlop.core.remotes.credentials import Store
    from orlop.core.remotes.resolver import RegistryResolver
    from orlop.core.transfer.ends import HTTPDebug, OCIRegistry, Secret, Sink

_DIRECTORIES: Final = ("/etc/containerd/certs.d", "/etc/docker/certs.d")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """What a user says about registries.

    Attributes:
        plain_http: HTTP where no scheme is configured; for localhost that is tried anyhow.
        skip_verify: do not verify certificates.
        user: `name:password`, or a name alone to be asked by `ask_password`.
        refresh: token for the authorization server.
        hosts_dir: directory with a `hosts.toml` per registry; containerd's and docker's usual ones when empty.
        ca_file, cert_file, key_file: PEM files.
        show_traffic: have the transfer service tell what it says to the registry.
    """

    plain_http: bool = False
    skip_verify: bool = False
    user: str = ""
    refresh: str = ""
    hosts_dir: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    ask_password: Callable[[], str] | None = None
    show_traffic: bool = False

    @property
    def needs_client(self) -> bool:
        """Whether only the client itself can do what is said here: certificates are its own files."""
        return bool(self.skip_verify or self.ca_file or self.cert_file or self.key_file)

    def resolver(self) -> "RegistryResolver":
        """A resolver with these options. Credentials that are not given come from docker's and podman's files."""
        from orlop.core.remotes.hosts import HostOptions, Tls
        from orlop.core.remotes.resolver import RegistryResolver

        if self.key_file and not self.cert_file:
            raise InvalidArgumentError("a TLS client key needs its certificate")
        tls = Tls(
            ca_files=(self.ca_file,) if self.ca_file else (),
            client_pairs=((self.cert_file, self.key_file),) if self.cert_file else (),
            skip_verify=True if self.skip_verify else None,
        )
        hosts = HostOptions(
            hosts_dirs=(self.hosts_dir,) if self.hosts_dir else _DIRECTORIES, plain_http=self.plain_http, tls=tls
        )
        return RegistryResolver(hosts=hosts, credentials=self.credentials())

    def credentials(self) -> "Store":
        """Who we are; asks for a password that is missing."""
        from orlop.core.remotes.credentials import Chain, Fixed, default_files, parse_user

        user = self.user
        if user and ":" not in user and self.ask_password is not None:
            user = f"{user}:{self.ask_password()}"
        if user or self.refresh:
            return Fixed(parse_user(user, refresh=self.refresh))
        return Chain(default_files(os.environ))

    def end(
        self, reference: str, *, http_debug: "HTTPDebug | None" = None, logs: "Sink | None" = None
    ) -> "OCIRegistry":
        """The same for the transfer service, but for certificates: the daemon asks us who we are when it must know."""
        from orlop.core.transfer.ends import HTTPDebug, OCIRegistry

        return OCIRegistry(
            reference=reference,
            host_dir=self.hosts_dir,
            default_scheme="http" if self.plain_http else "",
            credentials=StoreHelper(self.credentials()),
            http_debug=http_debug or HTTPDebug.DISABLED,
            logs=logs,
        )


class StoreHelper:
    """See `core.transfer.ends.CredentialHelper`: the credentials that the client itself would use."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    async def secret(self, reference: str, host: str) -> "Secret":
        """See `core.transfer.ends.CredentialHelper.secret`."""
        from orlop.base.references import Spec
        from orlop.core.remotes.hosts import Host, server_address
        from orlop.core.transfer.ends import AuthKind, Secret

        spec = Spec.parse(reference)
        upstream = host in (spec.hostname, server_address(spec.hostname))
        server = Host(namespace=spec.hostname, scheme="https", address=host, upstream=upstream)
        found = await self._store.lookup(server, spec.repository)
        if found is None:
            return Secret()
        if found.bearer:
            return Secret(kind=AuthKind.HEADER, secret=f"Bearer {found.bearer}")
        if found.username:
            return Secret(kind=AuthKind.CREDENTIALS, username=found.username, secret=found.secret)
        return Secret(kind=AuthKind.REFRESH, secret=found.secret)
