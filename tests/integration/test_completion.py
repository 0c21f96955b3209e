"""What a shell completes after it has read `ctr completion`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import peers
from tools.daemons import our_program

DRIVER = """
source <(ctr completion bash)
complete -p ctr
while read -r line; do
    COMP_WORDS=($line) COMP_CWORD=$(( $(wc -w <<< "$line") - 1 )) COMPREPLY=()
    _ctr_completion ctr
    echo "${COMPREPLY[*]}"
done
"""


ASKED = {
    "ctr ta": ["tasks"],
    "ctr tasks d": ["delete"],
    "ctr t l": ["list"],
    "ctr run --cn": ["--cni"],
    "ctr images pu": ["pull", "push"],
    "ctr nonsense x": [],
}

# What the completion system of zsh brings is replaced: it needs a terminal and a user at it.
ZSH = """
module_path+=($@)
compdef() { print -r -- "complete $2 by $1" }
_describe() { local one; for one in ${(P)3}; do printf '%s ' "${one%%:*}"; done }
compadd() { print -rn -- "${(P)@[-1]} " }
source <(ctr completion zsh)
while read -r line; do
    words=(${=line}) CURRENT=${#words}
    _ctr_completion
    print
done
"""

FISH = """
ctr completion fish | source
while read -l line
    echo (complete -C"$line" | string replace -r '\\t.*' '')
end
"""


def _shell(name: str) -> Path:
    """The user's shell, or the peer."""
    found = shutil.which(name) or peers.locate(name)
    if found is None:
        pytest.skip(f"there is no {name}")
    return Path(found)


def _answers(*command: str | Path) -> list[str]:
    done = subprocess.run(
        command,
        input="".join(f"{line}\n" for line in ASKED),
        env={"PATH": f"{Path(our_program('ctr')).parent}:{os.environ['PATH']}", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_completes_commands_aliases_and_flags() -> None:
    first, *answers = _answers(_shell("bash"), "--norc", "-c", DRIVER)
    assert first == "complete -o nosort -F _ctr_completion ctr"
    assert [answer.split() for answer in answers] == list(ASKED.values())


def test_zsh_does_the_same() -> None:
    modules = peers.PEERS.glob("usr/lib/*/zsh/*")  # the peer would look for them where it is not installed
    first, *answers = _answers(_shell("zsh"), "-f", "-c", ZSH, "zsh", *modules)
    assert first == "complete ctr by _ctr_completion"
    assert [answer.split() for answer in answers] == list(ASKED.values())


def test_fish_does_the_same() -> None:
    answers = _answers(_shell("fish"), "--no-config", "-c", FISH)
    assert [answer.split() for answer in answers] == list(ASKED.values())
