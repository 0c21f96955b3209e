"""`orlopd oci-hook`: run a program from an OCI hook, with facts of the container in its arguments.

The OCI runtime gives hooks the container's state on standard input; few programs read that. So a spec's hook calls
`orlopd oci-hook -- PROGRAM ARG…`, in whose words these are replaced:

    {{id}} {{bundle}} {{rootfs}} {{pid}} {{status}} {{annotation "key"}}

Source: the command oci-hook of containerd.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from orlop.base.errdefs import InvalidArgumentError

_WORD: Final = re.compile(r"\{\{\s*(\w+)(?:\s+\"([^\"]*)\")?\s*\}\}")


def run(arguments: Sequence[str]) -> NoReturn:
    """Become the program. Raises InvalidArgumentError if there is none, or a word in braces that is not known."""
    if not arguments:
        raise InvalidArgumentError("oci-hook: a program to run is required")
    try:
        state = json.load(sys.stdin)
        facts = known(state, _spec(state["bundle"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"oci-hook: state of the container on standard input: {error}") from error
    words = [fill(word, facts) for word in arguments]
    os.execvp(words[0], words)


def known(state: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the words stand for; Any: JSON of the runtime-spec. `rootfs` is absolute."""
    bundle = state["bundle"]
    return {
        "id": state["id"],
        "bundle": bundle,
        "rootfs": os.path.join(bundle, (spec.get("root") or {}).get("path") or "rootfs"),
        "pid": str(state.get("pid", 0)),
        "status": state.get("status", ""),
        "annotations": {**(spec.get("annotations") or {}), **(state.get("annotations") or {})},
    }


def fill(word: str, facts: Mapping[str, Any]) -> str:
    """One argument with what is in braces replaced. Raises InvalidArgumentError for a word that is not known."""

    def value(match: re.Match[str]) -> str:
        name, argument = match.groups()
        if name == "annotation" and argument is not None:
            return str(facts["annotations"].get(argument, ""))
        if argument is None and name in facts and name != "annotations":
            return str(facts[name])
        raise InvalidArgumentError(f"oci-hook: {match.group()}: not known")

    return _WORD.sub(value, word)


def _spec(bundle: str) -> dict[str, Any]:
    with open(os.path.join(bundle, "config.json"), "rb") as file:
        spec: dict[str, Any] = json.load(file)
    return spec
