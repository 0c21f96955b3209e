"""Differs: what applies layers to mounts and makes layers of them."""
