"""What a shell completes after it has read `ctr completion`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_aliases_and_flags() -> None:
    asked = {
        "ctr ta": "tasks",
        "ctr tasks d": "delete",
        "ctr t l": "list",
        "ctr run --cn": "--cni",
        "ctr images pu": "pull push",
        "ctr nonsense x": "",
    }
    beside = Path(our_program("ctr")).parent
    done = subprocess.run(
        ["bash", "--norc", "-c", DRIVER],
        input="".join(f"{line}\n" for line in asked),
        env={"PATH": f"{beside}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *answers = done.stdout.splitlines()
    assert first == "complete -o nosort -F _ctr_completion ctr"
    assert answers == list(asked.values())
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_scripts_of_their_own(shell: str, tmp_path: Path) -> None:
    script = subprocess.run(
        [our_program("ctr"), "completion", shell], capture_output=True, text=True, check=True
    ).stdout
    assert "_CTR_COMPLETE" in script
    found = shutil.which(shell)
    if found is not None:
        (tmp_path / "script").write_text(script)
        subprocess.run([found, "-n", tmp_path / "script"], check=True)
