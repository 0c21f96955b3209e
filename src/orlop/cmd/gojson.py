"""Protobuf messages as JSON the way containerd's Go structs marshal: field names of the proto, empty fields left out.

Source: encoding/json on the generated structs (`json:"container_id,omitempty"`); times are values there, and so never
left out; bytes are base64.
"""

from typing import Any

from google.protobuf.message import Message

from orlop.client.stamps import rfc3339_nano

# Any: JSON.


def to_json(message: Message) -> dict[str, Any]:
    """The JSON object of a message."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
            result[field.name] = rfc3339_nano(value)
        elif _repeated(field):
            if len(value):
                result[field.name] = _many(field, value)
        elif field.message_type is not None:
            if message.HasField(field.name):
                result[field.name] = to_json(value)
        elif value:
            result[field.name] = _plain(value)
    return result


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _many(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of_messages = field.message_type.fields_by_name["value"].message_type is not None
        return {key: to_json(value[key]) if of_messages else _plain(value[key]) for key in sorted(value)}
    return [to_json(one) if isinstance(one, Message) else _plain(one) for one in value]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode("ascii")
    return value
