"""Generate src/orlop/api from proto/: `tools/protos.py` writes, `tools/protos.py --check` compares.

Every directory gets an `__init__.py`; a generated file without a source is removed (or reported, under --check).
"""

import argparse
import filecmp
import importlib.util
import pathlib
import shutil
import sys
import tempfile

from grpc_tools import protoc

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SOURCES = REPOSITORY / "proto"
TARGET = REPOSITORY / "src" / "orlop" / "api"
INIT = '"""Generated protobuf code: see the .proto files under proto/. Never edited by hand."""\n'


def includes() -> list[str]:
    """Directories where protoc finds google/protobuf and google/rpc."""
    bundled = pathlib.Path(protoc.__file__).parent / "_proto"
    common = importlib.util.find_spec("google.rpc")
    if common is None or not common.submodule_search_locations:
        raise SystemExit("protos: googleapis-common-protos is missing: run `make setup`")
    return [f"-I{bundled}", f"-I{pathlib.Path(common.submodule_search_locations[0]).parent.parent}"]


def generate(out: pathlib.Path) -> None:
    sources = sorted(str(path) for path in SOURCES.rglob("*.proto"))
    status = protoc.main(["protoc", f"-I{SOURCES}", *includes(), f"--python_out={out}", f"--pyi_out={out}", *sources])
    if status != 0:
        raise SystemExit(f"protos: protoc ended with status {status}")
    api = out / "orlop" / "api"
    for directory in [api, *(path for path in api.rglob("*") if path.is_dir())]:
        (directory / "__init__.py").write_text(INIT)


def tree(root: pathlib.Path) -> set[pathlib.Path]:
    return {path.relative_to(root) for path in root.rglob("*.py*") if path.suffix in {".py", ".pyi"}}


def replace(fresh: pathlib.Path, wrong: set[pathlib.Path]) -> None:
    """Bring the `wrong` files of the tree to what `fresh` has; each changes at once, the others stay untouched."""
    for path in sorted(wrong):
        target = TARGET / path
        if not (fresh / path).exists():
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.new")
        shutil.copyfile(fresh / path, beside)
        beside.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if src/orlop/api is not what proto/ says")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        generate(pathlib.Path(scratch))
        fresh = pathlib.Path(scratch) / "orlop" / "api"
        wrong = tree(fresh) ^ tree(TARGET)
        wrong |= {path for path in tree(fresh) & tree(TARGET) if not filecmp.cmp(fresh / path, TARGET / path, False)}
        if not args.check:
            replace(fresh, wrong)
            return
        for path in sorted(wrong):
            print(f"protos: {path} is not fresh: run `make protos`", file=sys.stderr)
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
