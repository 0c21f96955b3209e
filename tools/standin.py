"""Stands in for an OCI runtime with CRIU, which Debian's does not run on newer kernels.

    standin.py LOG RUNC ARGUMENTS…

Every command line is noted in LOG. `checkpoint` writes what a dump looks like, `restore` reads it and runs the bundle
anew with the file /restored in its root; all else is done by RUNC.
"""

import json
import os
import subprocess
import sys

VALUED = {"--root", "--log", "--log-format"}
PAGES = bytes(range(256)) * (12 << 10)


def main() -> None:
    log, runc, *argv = sys.argv[1:]
    at = 0
    while argv[at].startswith("--"):
        at += 2 if argv[at] in VALUED else 1
    before, command, rest = argv[:at], argv[at], argv[at + 1 :]
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps([command, *rest]) + "\n")
    if command == "checkpoint":
        checkpoint([runc, *before], rest)
    elif command == "restore":
        restore([runc, *before], rest)
    else:
        os.execv(runc, [runc, *argv])


def value(args: list[str], name: str) -> str:
    return args[args.index(name) + 1]


def checkpoint(runc: list[str], args: list[str]) -> None:
    container = args[-1]
    state = json.loads(subprocess.run([*runc, "state", container], check=True, capture_output=True).stdout)
    image, work = value(args, "--image-path"), value(args, "--work-path")
    os.makedirs(work, exist_ok=True)
    with open(f"{work}/dump.log", "w", encoding="utf-8") as file:
        file.write("(00.001) how it went\n")
    rootfs = f"{state['bundle']}/rootfs"
    if os.path.exists(f"{rootfs}/fail"):
        with open(value(runc, "--log"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"level": "error", "msg": "criu failed: type NOTIFY errno 0"}) + "\n")
        sys.exit("criu failed: type NOTIFY errno 0")
    with open(f"{rootfs}/state", "rb") as file:
        write_image(image, file.read())
    if "--leave-running" not in args:
        subprocess.run([*runc, "kill", container, "KILL"], check=True)
        subprocess.run([*runc, "delete", "--force", container], check=True)


def write_image(image: str, state: bytes) -> None:
    os.makedirs(f"{image}/net", exist_ok=True)
    with open(f"{image}/net/state.img", "wb") as file:
        file.write(state)
    with open(f"{image}/pages-1.img", "wb") as file:
        file.write(PAGES + b"odd")
    os.link(f"{image}/pages-1.img", f"{image}/pages-2.img")
    os.symlink("pages-1.img", f"{image}/parent")


def restore(runc: list[str], args: list[str]) -> None:
    image, bundle = value(args, "--image-path"), value(args, "--bundle")
    for name in ("pages-1.img", "pages-2.img", "parent"):
        with open(f"{image}/{name}", "rb") as file:
            if file.read() != PAGES + b"odd":
                sys.exit(f"{name} is not what was dumped")
    if os.stat(f"{image}/pages-1.img").st_nlink != 2:
        sys.exit("the hard link was lost")
    with open(f"{image}/net/state.img", "rb") as source, open(f"{bundle}/rootfs/restored", "wb") as file:
        file.write(source.read())
    for name in ("--image-path", "--work-path"):
        del args[args.index(name) : args.index(name) + 2]
    os.execv(runc[0], [*runc, "run", *args])


if __name__ == "__main__":
    main()
