"""Run a container inside this Python process: in_process.py ARCHIVE ROOT STATE. As root; no daemon is needed."""

import asyncio
import sys

import orlop


async def main(archive: str, root: str, state: str) -> int:
    async with orlop.Engine(root=root, state=state) as engine:
        with open(archive, "rb") as file:
            (image,) = await engine.import_(file)
        options = orlop.SpecOptions(args=["echo", "hello from a Python program"])
        async with await engine.new_container("hello", image, options) as container:
            async with await container.new_task(orlop.inherit(stdin=False)) as task:
                await task.start()
                return (await task.wait()).code


sys.exit(asyncio.run(main(*sys.argv[1:])))
