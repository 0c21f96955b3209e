"""`containerd-shim-orlop-v1`; everything is in `orlop.shim.bootstrap`."""

import sys

from orlop.shim.bootstrap import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
