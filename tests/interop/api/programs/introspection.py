"""Introspection and Version: what can be compared between two programs."""

from typing import Final

from tests.interop.api.steps import Program, call

PROGRAMS: Final = [
    Program("version: no header is needed", [call("Version.Version", ns=""), call("Version.Version", ns="a b")]),
    Program(
        "introspection: no header is needed",
        [
            call("Introspection.Plugins", ns="", filters=["id==nonsense"]),
            call("Introspection.Plugins", ns="a b", filters=["id==nonsense"]),
        ],
    ),
    Program(
        "introspection: plug-ins that clients look for",
        [
            call("Introspection.Plugins", filters=["type==io.containerd.metadata.v1,id==nonsense"]),
            call("Introspection.Plugins", filters=["type==io.containerd.snapshotter.v1,id==none"]),
        ],
    ),
    Program(
        "introspection: a plug-in that is none",
        [
            call("Introspection.PluginInfo", type="x", id="y", note="of none"),
            call("Introspection.PluginInfo", type="io.containerd.snapshotter.v1", id="none", note="of no such id"),
        ],
        since=(2, 0),
        source="plugins/services/introspection/pluginservice.go of containerd 2.x: the class; the text is ours",
        expects={
            "Introspection.PluginInfo of none": ["NOT_FOUND: plugin x.y: not found"],
            "Introspection.PluginInfo of no such id": [
                "NOT_FOUND: plugin io.containerd.snapshotter.v1.none: not found"
            ],
        },
    ),
]
