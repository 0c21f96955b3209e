"""Where a directory is mounted, though it may have been deleted or moved away meanwhile."""

from orlop.linux.mount import mountinfo


def is_shown(ending: str) -> bool:
    """Whether a mount here shows a directory whose path ends so: as its root, or as the upper layer of an overlay.

    A mount of another file system with such a path counts, too; this is for who rather asks once too often.
    """
    return any(
        one.root.removesuffix("//deleted").endswith(ending)
        or any(option.startswith("upperdir=") and option.endswith(ending) for option in one.super_options.split(","))
        for one in mountinfo()
    )
