from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckRequest(_message.Message):
    __slots__ = ("repair", "quick")
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    QUICK_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    quick: bool
    def __init__(self, repair: bool = ..., quick: bool = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("finding", "unchecked")
    FINDING_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    finding: Finding
    unchecked: Unchecked
    def __init__(self, finding: _Optional[_Union[Finding, _Mapping]] = ..., unchecked: _Optional[_Union[Unchecked, _Mapping]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("kind", "object", "namespaces", "wrong", "mends", "mended")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    MENDS_FIELD_NUMBER: _ClassVar[int]
    MENDED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    object: str
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    wrong: str
    mends: str
    mended: bool
    def __init__(self, kind: _Optional[str] = ..., object: _Optional[str] = ..., namespaces: _Optional[_Iterable[str]] = ..., wrong: _Optional[str] = ..., mends: _Optional[str] = ..., mended: bool = ...) -> None: ...

class Unchecked(_message.Message):
    __slots__ = ("what", "why")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    what: str
    why: str
    def __init__(self, what: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...
