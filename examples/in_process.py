"""Run a container inside this Python process: in_process.py ARCHIVE ROOT STATE. As root; no daemon is needed."""

import asyncio
import sys
from typing import IO

import orlop


async def main(archive: IO[bytes], root: str, state: str) -> int:
    async with orlop.Engine(root=root, state=state) as engine:
        (image,) = await engine.import_(archive)
        options = orlop.SpecOptions(args=["echo", "hello from a Python program"])
        async with await engine.new_container("hello", image, options) as container:
            async with await container.new_task(orlop.inherit(stdin=False)) as task:
                await task.start()
                return (await task.wait()).code


with open(sys.argv[1], "rb") as file:
    sys.exit(asyncio.run(main(file, *sys.argv[2:])))
