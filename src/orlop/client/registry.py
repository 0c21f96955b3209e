"""How a registry is reached: flags and files, made into a resolver.

`aiohttp` and with it asyncio are imported by the resolver's first request, so only by those who pull or push.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import InvalidArgumentError

if TYPE_CHECKING:
    from orlop.core.remotes.resolver import RegistryResolver

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

    def resolver(self) -> "RegistryResolver":
        """A resolver with these options. Credentials that are not given come from docker's and podman's files."""
        from orlop.core.remotes.credentials import Chain, Fixed, default_files, parse_user
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
        user = self.user
        if user and ":" not in user and self.ask_password is not None:
            user = f"{user}:{self.ask_password()}"
        if user or self.refresh:
            return RegistryResolver(hosts=hosts, credentials=Fixed(parse_user(user, refresh=self.refresh)))
        return RegistryResolver(hosts=hosts, credentials=Chain(default_files(os.environ)))
