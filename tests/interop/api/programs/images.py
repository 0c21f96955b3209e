"""Images: validation, masks, deletion with a target and with sync."""

from typing import Any, Final

from tests.interop.api.steps import DIGEST, HELLO, NONE, Program, Step, blob, call, image, mask


def _update(*paths: str, name: str = "one", **fields: Any) -> Step:
    return call("Images.Update", image={**image(name), **fields}, update_mask=mask(*paths))


TARGETS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"media_type": "m"},
    {"media_type": "m", "digest": DIGEST},
    {"media_type": "m", "digest": DIGEST, "size": -1},
    {"digest": DIGEST, "size": 5},
    {"media_type": "m", "size": 5},
    {"media_type": "m", "digest": "nonsense", "size": 5},
    {"media_type": "m", "digest": "sha256:12", "size": 5},
    {"media_type": "m", "digest": "sha256:" + "G" * 64, "size": 5},
    {"media_type": "m", "digest": "sha256:" + "A" * 64, "size": 5},
    {"media_type": "m", "digest": "md5:" + "0" * 32, "size": 5},
    {"media_type": "m", "digest": "sha512:" + "0" * 128, "size": 5},
    {"media_type": "m", "digest": "sha384:" + "0" * 96, "size": 5},
    {"media_type": "", "digest": "", "size": 0},
)

PROGRAMS: Final = [
    Program(
        "images: a life",
        [
            call("Images.Get", name="one"),
            call("Images.Create", image=image("one", labels={"a": "1", "e": ""}, annotations={"x": "y", "e": ""})),
            call("Images.Get", name="one"),
            call("Images.Create", image=image("one")),
            call("Images.Create", image=image("one"), ns="{other}"),
            call("Images.List"),
            call("Images.Delete", name="one"),
            call("Images.Delete", name="one"),
            call("Images.List"),
        ],
    ),
    Program(
        "images: targets",
        [call("Images.Create", image={"name": f"n{index}", "target": one}) for index, one in enumerate(TARGETS)],
    ),
    Program(
        "images: names",
        [
            call("Images.Create", image=image(one))
            for one in ("", " ", "a b", "..", "ä", "x" * 300, "with\nnewline", "/", "UPPER", "x@y:z")
        ]
        + [call("Images.List")],
    ),
    Program(
        "images: what is missing",
        [
            call("Images.Get"),
            call("Images.Get", name="none"),
            call("Images.Update", image=image("none")),
            call("Images.Update", image=image("none"), update_mask=mask("labels")),
            call("Images.Update", image=image("none"), update_mask=mask("nonsense")),
            call("Images.Delete"),
            call("Images.Delete", name="none"),
            call("Images.Delete", name="none", sync=True),
        ],
    ),
    Program(
        "images: no message at all",
        [
            call("Images.Create"),
            call("Images.Create", image={}),
            call("Images.Create", image={"name": "x"}),
            call("Images.Update"),
            call("Images.Update", image={}),
            call("Images.Create", image=image("one")),
            call("Images.Update", image={"name": "one"}),
        ],
        until=(1, 6),
    ),
    Program(
        "images: namespaces that are none",
        [
            call("Images.List", ns=""),
            call("Images.Get", ns="", name="x"),
            call("Images.Create", ns="", image=image("x")),
            call("Images.Update", ns="", image=image("x")),
            call("Images.Delete", ns="", name="x"),
            call("Images.List", ns="bad name"),
            call("Images.Create", ns="bad/name", image=image("x")),
        ],
    ),
    Program(
        "images: labels' sizes",
        [
            call("Images.Create", image=image("one", labels={"k": "v" * 4095})),
            call("Images.Create", image=image("two", labels={"k": "v" * 4096})),
            call("Images.Create", image=image("three", labels={"": "v"})),
            call("Images.Create", image=image("four", annotations={"k": "v" * 5000})),
            call("Images.Update", image=image("one", labels={"k": "v" * 4096})),
            _update("labels.k", labels={"k": "v" * 4096}),
        ],
    ),
    Program(
        "images: update by masks",
        [
            call("Images.Create", image=image("one", labels={"a": "1", "b": "2"}, annotations={"x": "1"})),
            _update("labels.a", labels={"a": "9", "c": "not named"}),
            _update("labels.a", labels={}),
            _update("labels.d.e", labels={"d.e": "1"}),
            _update("labels", labels={"only": "this"}),
            _update("labels", labels={}),
            _update("target", target={"media_type": "m2", "digest": NONE, "size": 7, "annotations": {"n": "1"}}),
            _update("target", target={"media_type": "", "digest": NONE, "size": 7}),
            _update("target.size", target={"media_type": "m2", "digest": NONE, "size": 8}),
            _update("annotations", target={"annotations": {"z": "1"}}),
            _update("annotations.q", target={"annotations": {"q": "1", "r": "2"}}),
            _update("annotations.q", target={"annotations": {}}),
            _update("name"),
            _update("created_at"),
            _update("labels.a", "nonsense", labels={"a": "changed"}),
            _update(""),
            call("Images.Get", name="one"),
        ],
    ),
    Program(
        "images: update without a mask",
        [
            call("Images.Create", image=image("one", labels={"a": "1", "b": "2"}, annotations={"x": "1"})),
            call("Images.Update", image=image("one", digest=NONE, labels={"c": "1"})),
            call("Images.Update", image=image("one", size=0)),
            call("Images.Get", name="one"),
        ],
    ),
    Program(
        "images: order of lists",
        [
            *(call("Images.Create", image=image(one)) for one in ("b", "a", "B", "a:1", "10", "9", "a/b")),
            call("Images.List"),
        ],
    ),
    Program(
        "images: source date epoch",
        [
            call("Images.Create", image=image("one"), source_date_epoch={"seconds": 5}),
            call("Images.Update", image=image("one"), source_date_epoch={"seconds": 6}),
            call("Images.Create", image=image("two", created_at={"seconds": 7}, updated_at={"seconds": 8})),
            call("Images.Update", image=image("two", created_at={"seconds": 7}, updated_at={"seconds": 8})),
        ],
        since=(1, 7),
    ),
    Program(
        "images: deletion with a target",
        [
            call("Images.Create", image=image("one")),
            call("Images.Delete", name="one", target={"digest": NONE}),
            call("Images.Delete", name="one", target={"digest": "nonsense"}),
            call("Images.Delete", name="one", target={"digest": DIGEST, "size": 99}),
        ],
        since=(2, 0),
        source="core/metadata/images.go of containerd 2.x: Delete",
        expects={
            "Images.Delete": [f'NOT_FOUND: image "one" has target {DIGEST}, not {NONE}: not found'],
            "Images.Delete #2": [f'NOT_FOUND: image "one" has target {DIGEST}, not nonsense: not found'],
            "Images.Delete #3": ["OK", "  {}"],
        },
    ),
    Program(
        "images: sync deletion collects",
        [
            call("Leases.Create", id="hold"),
            blob(HELLO, lease="hold"),
            call("Images.Create", image=image("one")),
            call("Leases.Delete", id="hold", sync=True),
            call("Content.Info", digest=DIGEST),
            call("Images.Delete", name="one"),
            call("Content.Info", digest=DIGEST),
            call("Images.Create", image=image("two")),
            call("Images.Delete", name="two", sync=True),
            call("Content.Info", digest=DIGEST),
        ],
    ),
    Program(
        "images: leases",
        [
            call("Images.Create", image=image("one"), lease="none"),
            call("Leases.Create", id="hold"),
            call("Images.Create", image=image("two"), lease="hold"),
            call("Images.Create", image=image("three", labels={"containerd.io/gc.expire": "2999-01-01T00:00:00Z"})),
            call(
                "Images.Create",
                image=image("four", labels={"containerd.io/gc.expire": "2999-01-01T00:00:00Z"}),
                lease="hold",
            ),
            call("Images.Update", image=image("four"), lease="hold"),
            call("Images.Delete", name="two", lease="hold"),
        ],
    ),
]
