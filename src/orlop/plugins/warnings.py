"""What of a configuration is on its way out, as introspection's Server and `ctr deprecations list` show it.

Source: pkg/deprecation and plugins/services/warning of containerd; those of the CRI have nothing here to warn of.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from orlop.core.deprecations import Deprecations
from orlop.core.kinds import WARNING
from orlop.core.plugin import Context, Registration

_PREFIX: Final = "io.containerd.deprecation/"
OTLP: Final = f"{_PREFIX}tracing-processor-config"
TRACING: Final = f"{_PREFIX}tracing-service-config"
MESSAGES: Final = {
    OTLP: (
        'The `otlp` property of `[plugins."io.containerd.tracing.processor.v1".otlp]` is deprecated since containerd '
        "v1.6 and will be removed in containerd v2.3.Use OTLP environment variables instead: "
        "https://opentelemetry.io/docs/specs/otel/protocol/exporter/"
    ),
    TRACING: (
        'The `tracing` property of `[plugins."io.containerd.internal.v1".tracing]` is deprecated since containerd v1.6 '
        "and will be removed in containerd v2.3.Use OTEL environment variables instead: "
        "https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/"
    ),
}
"""containerd's sentences, which programs may compare; the missing spaces are its own."""
_SECTIONS: Final = ("io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing")
_KEYS: Final = {
    OTLP: ("endpoint", "protocol", "insecure"),
    TRACING: ("service_name", "sampling_ratio"),
}


def deprecated(plugins: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Ids of what the sections of a configuration use; a key that is empty, zero or false is not used."""
    # Any: values as they stand in the file.
    used = {key for uri in _SECTIONS for key, value in plugins.get(uri, {}).items() if value}
    return [name for name, keys in _KEYS.items() if used & set(keys)]


def _init(context: Context) -> Deprecations:
    deprecations = Deprecations(MESSAGES)
    for name in deprecated(context.daemon.plugins):
        deprecations.emit(name, datetime.now(UTC))
    return deprecations


REGISTRATION: Final = Registration(kind=WARNING, id="deprecations", init=_init)
