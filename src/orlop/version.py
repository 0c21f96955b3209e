"""The release of orlop; the wire level it serves is in orlop.server.version."""

__version__ = "0.1.0"
