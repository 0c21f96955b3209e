"""CNI's configurations, plug-ins and records, with scripts for plug-ins."""

import json
from pathlib import Path

import pytest

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, UnknownError
from orlop.client.cni import Cni, load

# Notes its call, and answers with the interface's name and whether there was a previous result.
PLUGIN = """#!/bin/sh
conf=$(cat)
echo "$CNI_COMMAND ${0##*/} $CNI_IFNAME $CNI_NETNS" >> "$CNI_CALLS"
case "$conf" in *'"fail": "'$CNI_COMMAND'"'*) echo '{"code": 11, "msg": "no way", "details": "today"}'; exit 1;; esac
[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}'
"""


class Host:
    def __init__(self, directory: Path) -> None:
        self.conf, self.plugins, self.calls = directory / "net.d", directory / "bin", directory / "calls"
        self.records = directory / "cache/results"
        self.conf.mkdir()
        self.plugins.mkdir()
        for name in ("first", "second"):
            (self.plugins / name).write_text(PLUGIN)
            (self.plugins / name).chmod(0o755)
        self.cni = Cni(str(self.conf), [str(self.plugins)], str(directory / "cache"))

    def configure(self, *plugins: dict[str, str], name: str = "net") -> None:
        document = {"cniVersion": "1.0.0", "name": name, "plugins": plugins}
        (self.conf / "10-net.conflist").write_text(json.dumps(document))

    def called(self) -> list[str]:
        called = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return called


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("CNI_CALLS", str(tmp_path / "calls"))
    return Host(tmp_path)


def test_plugins_run_in_order_and_are_undone_in_reverse(host: Host) -> None:
    host.configure({"type": "first"}, {"type": "second"})
    [attached] = host.cni.setup("ns-one", "/proc/1/ns/net")
    assert (attached.network, attached.interface, attached.addresses) == ("net", "eth0", ("10.1.2.3/24",))
    assert host.called() == ["ADD first eth0 /proc/1/ns/net", "ADD second eth0 /proc/1/ns/net"]
    host.configure({"type": "none"})  # what is undone is what was done
    assert host.cni.attachments("ns-one") == [attached]
    assert host.cni.attachments("ns") == []
    host.cni.remove("ns-one")
    assert host.called() == ["DEL second eth0 ", "DEL first eth0 "]
    assert list(host.records.iterdir()) == []
    host.cni.remove("ns-one")
    assert host.called() == []


def test_what_fails_is_undone(host: Host) -> None:
    host.configure({"type": "first"}, {"type": "second", "fail": "ADD"})
    with pytest.raises(UnknownError, match="CNI plugin second for container one: ADD: no way; today"):
        host.cni.setup("one", "/x")
    assert [call.split()[0] for call in host.called()] == ["ADD", "ADD", "DEL", "DEL"]
    assert list(host.records.iterdir()) == []
    host.configure({"type": "first"}, {"type": "third"})
    with pytest.raises(NotFoundError, match="CNI plugin third"):
        host.cni.setup("one", "/x")
    assert host.called() == []


def test_a_record_stays_until_all_is_undone(host: Host) -> None:
    host.configure({"type": "first"}, {"type": "second", "fail": "DEL"})
    host.cni.setup("one", "/x")
    host.called()
    with pytest.raises(UnknownError, match="no way"):
        host.cni.remove("one", "/x")
    assert host.called() == ["DEL second eth0 /x", "DEL first eth0 /x"]
    [record] = host.records.iterdir()
    entry = json.loads(record.read_text())
    for config in ("!", "e30=", 5, ["x"]):
        record.write_text(json.dumps({**entry, "config": config}))
        with pytest.raises(InvalidArgumentError, match="network config in"):
            host.cni.remove("one")
    record.write_text("no JSON")
    host.cni.remove("one")


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "{}",
        '{"name": "a", "plugins": []}',
        '{"name": "a", "plugins": [{}]}',
        '{"name": "a", "type": "../sh"}',
        '{"name": "../a", "type": "x"}',
        '{"type": "x"}',
        '{"name": "a", "plugins": 5}',
    ],
)
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.conf").write_text(text)
    with pytest.raises(InvalidArgumentError, match="CNI config in"):
        load(str(tmp_path))


def test_configs_come_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no network config found in"):
        load(str(tmp_path / "none"))
    for name in ("b.conf", "a.json", "c.conflist", "0.txt"):
        (tmp_path / name).write_text(json.dumps({"name": name.partition(".")[0], "type": "x"}))
    assert [config.name for config in load(str(tmp_path))] == ["a"]
    assert [config.name for config in load(str(tmp_path), limit=9)] == ["a", "b", "c"]
