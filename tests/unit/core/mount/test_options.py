"""Mount options are sorted as containerd sorts them."""

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.mount import Mount, options
from orlop.linux import mount as mnt


def test_flags_data_and_propagation_are_told_apart():
    parsed = options.parse(["rbind", "ro", "nosuid", "rslave", "size=4k", "", "mode=0700"])
    assert parsed.flags == mnt.MS_BIND | mnt.MS_REC | mnt.MS_RDONLY | mnt.MS_NOSUID
    assert parsed.propagation == mnt.MS_SLAVE | mnt.MS_REC
    assert parsed.data == ("size=4k", "mode=0700")


def test_the_last_of_two_contradicting_words_holds():
    assert options.parse(["ro", "rw"]).flags == 0
    assert options.parse(["rw", "ro"]).flags == mnt.MS_RDONLY


def test_id_maps_are_read():
    parsed = options.parse(["uidmap=0:1000:1,1:100000:65535", "gidmap=0:1000:65536"])
    assert parsed.uid_maps == (options.IDMap(0, 1000, 1), options.IDMap(1, 100000, 65535))
    assert parsed.gid_maps == (options.IDMap(0, 1000, 65536),)


@pytest.mark.parametrize(
    "words",
    [
        ["uidmap=0:1000:1"],
        ["uidmap=0:1000", "gidmap=0:0:1"],
        ["uidmap=0:-1:1", "gidmap=0:0:1"],
        ["uidmap=0:4294967295:2", "gidmap=0:0:1"],
    ],
)
def test_what_cannot_be_done_is_refused(words):
    with pytest.raises(InvalidArgumentError):
        options.parse(words)


@pytest.mark.parametrize("layers", [["/a", "/b"], ["/with:colon", "/back\\slash", "/plain"]])
def test_layers_survive_their_escapes(layers):
    assert options.split_layers(options.join_layers(layers)) == layers


def test_a_readonly_overlay_shows_its_upper_directory_as_the_top_layer():
    mount = Mount(
        type="overlay",
        source="overlay",
        options=("index=off", "volatile", "workdir=/w", "upperdir=/u:x", "lowerdir=/b:/a"),
    )
    (read,) = options.readonly([mount])
    assert read.options == ("index=off", "lowerdir=/u\\:x:/b:/a")
    (view,) = options.readonly([Mount(type="overlay", source="overlay", options=("lowerdir=/b:/a",))])
    assert view.options == ("lowerdir=/b:/a",)


def test_a_readonly_bind_is_ro():
    (read,) = options.readonly([Mount(type="bind", source="/s", options=("rbind", "rw"))])
    assert read.options == ("rbind", "ro")
