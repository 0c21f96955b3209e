"""What leaves the repository: a wheel that works with what it says it needs, a unit file, man pages."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tools import man, peers


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of, so that nothing is left in the checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(peers.ROOT / name, source)
    shutil.copytree(peers.ROOT / "src", source / "src", ignore=ignore)
    _run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", directory, source)
    (built,) = directory.glob("orlop-*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' directory of an environment that has the wheel and what its metadata asks for, and nothing else.

    What it asks for is linked in from the environment of the tests, at the locked versions and without the network;
    pip then installs the wheel offline, and so refuses if something is not there or too old.
    """
    directory = tmp_path_factory.mktemp("fresh") / "env"
    _run(sys.executable, "-m", "venv", directory)
    (packages,) = directory.glob("lib/python*/site-packages")
    for distribution in _needed("orlop"):
        _link(distribution, packages)
    python = directory / "bin" / "python"
    _run(python, "-m", "pip", "install", "--no-index", "--quiet", wheel)
    _run(python, "-m", "pip", "check")
    return directory / "bin"


def test_programs_run_from_the_wheel(fresh: Path):
    assert "Commands" in _run(fresh / "ctr", "--help")
    assert "Commands" in _run(fresh / "dist", "--help")
    assert re.match(r"orlopd \S+ \d+\.\d+\.\d+\+orlop\.\d+\.\d+\.\d+", _run(fresh / "orlopd", "--version"))
    assert "io.containerd.server.v1.grpc" in _run(fresh / "orlopd", "config", "default")
    assert _run(fresh / "python", "-c", "import orlop; print(orlop.Client.__name__, orlop.Engine.__name__)")


def test_wheel_has_types_and_no_tests(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "orlop/py.typed" in names
    assert any(name.endswith("_pb2.pyi") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"orlop"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_unit_keeps_containers_alive():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys of units have capitals
    unit.read(peers.ROOT / "packaging" / "orlopd.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "process"
    assert service["Delegate"] == "yes"
    assert service["OOMScoreAdjust"] == "-999"
    assert service["LimitNOFILE"] == "infinity"
    assert Path(service["ExecStart"].split()[0]).name == "orlopd"


def test_man_pages_name_every_command():
    made = dict(man.pages())
    assert set(made) == {"orlopd.8", "ctr.1", "dist.1"}
    for words in ("ctr run", "ctr tasks exec", "ctr images import"):
        assert f".SS {words}".replace("-", "\\-") in made["ctr.1"]
    assert ".SS orlopd config default" in made["orlopd.8"]


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not here to read man pages: apt-get install groff")
def test_man_pages_are_well_formed():
    for name, text in man.pages():
        read = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww"], input=text, capture_output=True, text=True, check=True
        )
        assert read.stderr == "", name


def _needed(name: str, seen: set[str] | None = None) -> Iterator[metadata.Distribution]:
    """What a distribution needs here, with what that needs."""
    from packaging.requirements import Requirement

    seen = set() if seen is None else seen
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        key = requirement.name.lower()
        if key in seen or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        yield metadata.distribution(requirement.name)
        yield from _needed(requirement.name, seen)


def _link(distribution: metadata.Distribution, packages: Path) -> None:
    home = Path(str(distribution.locate_file("")))
    for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in {"..", "__pycache__"}}:
        target = packages / top
        if not target.exists() and (home / top).exists():
            target.symlink_to(home / top)


def _run(*command: str | Path) -> str:
    result = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout
