"""Introspection and Version: what can be compared between two programs."""

from typing import Final

from tests.interop.api.steps import Program, call

PROGRAMS: Final = [
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
            call("Introspection.PluginInfo"),
            call("Introspection.PluginInfo", type="x", id="y"),
        ],
        since=(2, 0),
    ),
]
