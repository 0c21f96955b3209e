"""YAML, of which JSON is a part, as programs in Go read their configuration."""

from typing import Any


def loads(data: bytes) -> Any:
    """The value of one document: what JSON can say, and dates as texts.

    Raises:
        ValueError: it is none, or names itself in itself.
    """
    import yaml  # late: few read it, and the libyaml behind it costs

    try:
        return _plain(yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()) or "nested too deeply") from error


def _plain(value: Any) -> Any:
    # Any: what a loader gives.
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
