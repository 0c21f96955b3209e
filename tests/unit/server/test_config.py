"""The configuration file: containerd's shape, defaults, imports, and what is refused."""

import tomllib
from dataclasses import dataclass, field

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.server import config
from orlop.server.config import Config, ProxyPlugin


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
    assert loaded.warnings == []


LISTENERS = """
version = 4
[plugins."io.containerd.server.v1.grpc"]
  address = "/run/x.sock"
  gid = 7
[plugins."io.containerd.server.v1.metrics"]
  address = "127.0.0.1:1338"
[plugins."io.containerd.server.v1.debug"]
  address = "/run/debug.sock"
"""


def test_listeners_are_read_from_their_plugins_tables(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(LISTENERS)
    loaded = config.load(path)
    assert (loaded.grpc.address, loaded.grpc.gid) == ("/run/x.sock", 7)
    assert (loaded.metrics.address, loaded.debug_socket.address) == ("127.0.0.1:1338", "/run/debug.sock")
    assert not loaded.plugins
    assert not loaded.warnings
    path.write_text(config.dump(loaded))
    assert config.load(path) == loaded


def test_older_versions_say_the_same_in_their_words(tmp_path):
    new, old = tmp_path / "new.toml", tmp_path / "old.toml"
    new.write_text(LISTENERS)
    old.write_text(
        """
version = 3
[grpc]
  address = "/run/x.sock"
  gid = 7
[metrics]
  address = "127.0.0.1:1338"
[debug]
  address = "/run/debug.sock"
"""
    )
    assert config.load(old) == config.load(new)


def test_plugins_of_version_2_get_the_names_that_they_have_today(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        """
version = 2
disabled_plugins = ["cri", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.internal.v1.restart"]
  interval = "3s"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
[plugins.scheduler]
  mutation_threshold = 7
"""
    )
    loaded = config.load(path)
    assert loaded.version == 4
    assert loaded.disabled_plugins == ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
    assert loaded.plugins == {
        "io.containerd.monitor.container.v1.restart": {"interval": "3s"},
        "io.containerd.cri.v1.images": {"registry": {"config_path": "/etc/containerd/certs.d"}},
        "io.containerd.gc.v1.scheduler": {"mutation_threshold": 7},
    }


def test_an_import_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "config.toml").write_text('version = 3\nimports = ["more.toml"]\n')
    (tmp_path / "more.toml").write_text("version = 4\n")
    with pytest.raises(
        InvalidArgumentError, match=r"more\.toml: version 4 is newer than that of the importing file, 3"
    ):
        config.load(tmp_path / "config.toml")


def test_imports_add_to_lists_and_tables(tmp_path):
    (tmp_path / "config.toml").write_text(
        'imports = ["more.toml"]\nrequired_plugins = ["a.b"]\n[runtimes]\n"x" = "/bin/x"\n'
        '[proxy_plugins.one]\ntype = "snapshot"\naddress = "/run/one.sock"\n'
    )
    (tmp_path / "more.toml").write_text(
        'required_plugins = ["c.d", "a.b"]\n[runtimes]\n"y" = "/bin/y"\n[proxy_plugins.one]\n'
        'address = "/run/two.sock"\n'
    )
    loaded = config.load(tmp_path / "config.toml")
    assert loaded.required_plugins == ["a.b", "c.d"]
    assert loaded.runtimes == {"x": "/bin/x", "y": "/bin/y"}
    assert loaded.proxy_plugins == {"one": ProxyPlugin(type="snapshot", address="/run/two.sock")}


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
        ("stream_processors = 1", "stream_processors: must be a table"),
        ("stream_processors.x = 1", "stream_processors: x: must be a table"),
        ("stream_processors.x.accepts = 'y'", "stream_processors: x: accepts: must be a list"),
        ("disabled_plugins = [1]", "disabled_plugins: must be a string"),
        ("version = 9", "only 2 to 4 are known"),
        ("version = ", "Invalid value"),
        ('disabled_plugins = ["nonsense"]', "expect a name such as io.containerd.x.vx"),
        ("[runtimes]\nx = 1", "runtimes: x: must be a string"),
        ("[proxy_plugins.p]\naddress = 1", "proxy_plugins: p: address: must be a string"),
        ('[plugins."io.containerd.server.v1.grpc"]\nuid = "x"', "uid: must be a whole number"),
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


def test_stream_processors_are_added_and_changed(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        """
[stream_processors.mine]
  accepts = ["application/x"]
  returns = "application/vnd.oci.image.layer.v1.tar"
  path = "/bin/x"
  env = ["A=b"]
  colour = "blue"
[stream_processors."io.containerd.ocicrypt.decoder.v1.tar"]
  path = "other-decoder"
"""
    )
    loaded = config.load(path)
    assert sorted(loaded.stream_processors) == [
        "io.containerd.ocicrypt.decoder.v1.tar",
        "io.containerd.ocicrypt.decoder.v1.tar.gzip",
        "mine",
    ]
    mine = loaded.stream_processors["mine"]
    assert (mine.accepts, mine.path, mine.args, mine.env) == (["application/x"], "/bin/x", [], ["A=b"])
    changed = loaded.stream_processors["io.containerd.ocicrypt.decoder.v1.tar"]
    assert (changed.path, changed.accepts) == ("other-decoder", ["application/vnd.oci.image.layer.v1.tar+encrypted"])
    assert loaded.warnings == [f"{path}: stream_processors: mine: colour: unknown key, ignored"]


def test_strings_are_quoted_as_toml_wants_them():
    value = 'a "b"\\c\n\x01'
    text = config.dump(Config(root=value))
    assert tomllib.loads(text)["root"] == value
