"""Who `--user` means: names and numbers looked up in a root file system's passwd and group files.

Source: WithUser and WithAdditionalGIDs in containerd's pkg/oci/spec_opts.go; passwd(5), group(5).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from orlop.base.errdefs import InvalidArgumentError, NotFoundError

_MAX_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Numbers of a user; `groups` begins with the primary one."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class UserFiles:
    """The text of both files; a missing one is empty."""

    def __init__(self, passwd: bytes | None = None, group: bytes | None = None) -> None:
        self._passwd = passwd or b""
        self._group = group or b""

    def resolve(self, text: str) -> Account:
        """The account for `user`, `uid`, `user:group`, `uid:gid` and their mixtures.

        A number needs no entry; then its group is 0.

        Raises:
            NotFoundError: a name without an entry.
            InvalidArgumentError: more than one colon.
        """
        user, separator, group = text.partition(":")
        if not user or ":" in group or (separator and not group):
            raise InvalidArgumentError(f"user {text!r} is not of the form user[:group]")
        number = _number(user)
        entry = next((one for one in self._users() if one[1] == number or (number is None and one[0] == user)), None)
        if entry is None and number is None:
            raise NotFoundError(f"user {user!r} in the container's /etc/passwd")
        name, uid, gid = entry if entry is not None else ("", number or 0, 0)
        if separator:
            gid = self._gid(group)
        return Account(uid=uid, gid=gid, groups=self.groups_of(name, gid))

    def groups_of(self, name: str, gid: int) -> tuple[int, ...]:
        """The primary group, then those whose member list has `name`, in the file's order."""
        found = [gid]
        for _, number, members in self._groups():
            if name and name in members and number not in found:
                found.append(number)
        return tuple(found)

    def _gid(self, text: str) -> int:
        number = _number(text)
        if number is not None:
            return number
        for name, gid, _ in self._groups():
            if name == text:
                return gid
        raise NotFoundError(f"group {text!r} in the container's /etc/group")

    def _users(self) -> Iterator[tuple[str, int, int]]:
        for fields in _lines(self._passwd):
            if len(fields) >= 4 and (uid := _number(fields[2])) is not None and (gid := _number(fields[3])) is not None:
                yield fields[0], uid, gid

    def _groups(self) -> Iterator[tuple[str, int, list[str]]]:
        for fields in _lines(self._group):
            if len(fields) >= 4 and (gid := _number(fields[2])) is not None:
                yield fields[0], gid, [member for member in fields[3].split(",") if member]


def _lines(data: bytes) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        text = line.strip()
        if text and not text.startswith("#"):
            yield text.split(":")


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    number = int(text)
    return number if number <= _MAX_ID else None
