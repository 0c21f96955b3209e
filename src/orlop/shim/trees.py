"""Removing directory trees. `shutil` would do, and would cost each supervisor a megabyte of decompressors."""

import contextlib
import os


def remove_tree(top: str) -> None:
    """Remove `top` with all that is in it, links not followed; what is not there, or cannot be removed, is left."""
    for directory, directories, files in os.walk(top, topdown=False):
        for name in (*files, *directories):
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}")
        with contextlib.suppress(OSError):
            os.rmdir(directory)
