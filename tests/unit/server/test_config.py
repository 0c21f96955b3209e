"""The configuration file: containerd's shape, defaults, imports, and what is refused."""

import tomllib
from dataclasses import dataclass, field

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.server import config
from orlop.server.config import Config


@dataclass(kw_only=True)
class Section:
    threshold: float = 0.02
    names: list[str] = field(default_factory=list)
    enabled: bool = False


def test_defaults_survive_a_round_trip_through_toml(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(config.dump(Config(), {"io.example.v1.x": Section()}))
    loaded = config.load(path)
    assert not loaded.warnings
    assert loaded.plugins == {"io.example.v1.x": {"threshold": 0.02, "names": [], "enabled": False}}
    loaded.plugins = {}
    assert loaded == Config()


def test_a_file_of_containerd_is_read_and_what_we_lack_is_warned_about(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        """
version = 2
root = "/var/lib/x"
oom_score = -999
[grpc]
  address = "/run/x/x.sock"
  tcp_address = ""
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "pause"
"""
    )
    loaded = config.load(path)
    assert (loaded.root, loaded.oom_score, loaded.grpc.address) == ("/var/lib/x", -999, "/run/x/x.sock")
    assert loaded.ttrpc_address == "/run/x/x.sock.ttrpc"
    assert loaded.warnings == [f"{path}: grpc: tcp_address: unknown key, ignored"]


def test_imports_are_read_over_the_file_once(tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "config.toml").write_text('root = "/a"\nstate = "/s"\nimports = ["conf.d/*.toml"]\n')
    (tmp_path / "conf.d" / "one.toml").write_text('root = "/b"\nimports = ["../config.toml"]\n')
    loaded = config.load(tmp_path / "config.toml")
    assert (loaded.root, loaded.state) == ("/b", "/s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("root = 5", "root: must be a string"),
        ("oom_score = true", "oom_score: must be a whole number"),
        ('grpc = "x"', "grpc: must be a table"),
        ("disabled_plugins = [1]", "disabled_plugins: must be a string"),
        ("version = 9", "only 2 and 3 are known"),
        ("version = ", "Invalid value"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, message):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        config.load(path)
    assert str(path) in str(caught.value)


def test_a_plugins_section_takes_whole_numbers_for_floats_and_warns_about_the_rest():
    warnings: list[str] = []
    section = config.section(Section, {"threshold": 1, "other": 2}, "plugins.x", warnings)
    assert section == Section(threshold=1.0)
    assert warnings == ["plugins.x: other: unknown key, ignored"]


def test_strings_are_quoted_as_toml_wants_them():
    value = 'a "b"\\c\n\x01'
    text = config.dump(Config(root=value))
    assert tomllib.loads(text)["root"] == value
