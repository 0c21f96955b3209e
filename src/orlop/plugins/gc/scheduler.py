"""The collector and its schedule as a plug-in, with containerd's settings."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from orlop.base import durations
from orlop.core.gc import Collector, Policy, Scheduler
from orlop.core.images import events
from orlop.core.kinds import CONTENT, GC, METADATA, MOUNT_MANAGER, SNAPSHOTS
from orlop.core.plugin import Context, Registration


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration; see `orlop.core.gc.Policy` for what the values mean."""

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: str = "0s"
    startup_delay: str = "100ms"

    def policy(self) -> Policy:
        """The values in units. Raises InvalidArgumentError for a duration that is none."""
        return Policy(
            pause_threshold=self.pause_threshold,
            deletion_threshold=self.deletion_threshold,
            mutation_threshold=self.mutation_threshold,
            schedule_delay_s=max(durations.parse(self.schedule_delay), 0) / 1e9,
            startup_delay_s=max(durations.parse(self.startup_delay), 0) / 1e9,
        )


async def _init(context: Context) -> Scheduler:
    db, content = context.get(METADATA), context.get(CONTENT)
    # Where snapshots do not work, whatever else there is must still be collected.
    every = list(context.all(SNAPSHOTS).values())
    snapshots = {name: store for stores in every for name, store in stores.items()}

    def sync() -> None:
        for stores in every:
            stores.flush()

    mounts = next(iter(context.all(MOUNT_MANAGER).values()), None)
    collector = Collector(content, snapshots, mounts=mounts, image_deleted=events.deleted)
    scheduler = Scheduler(
        db,
        collector,
        context.config.policy(),
        first=(content.sweep,),
        sync=sync,
    )
    db.on_mutation = scheduler.mutated
    task = asyncio.get_running_loop().create_task(scheduler.run(), name="orlop-gc")

    async def close() -> None:
        db.on_mutation = None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    context.on_close(close)
    context.on_reload(lambda config: scheduler.follow(config.policy()))
    context.exports.update(
        PauseThreshold=str(context.config.pause_threshold),
        DeletionThreshold=str(context.config.deletion_threshold),
        MutationThreshold=str(context.config.mutation_threshold),
        ScheduleDelay=context.config.schedule_delay,
    )
    return scheduler


REGISTRATION: Final = Registration(
    kind=GC, id="scheduler", requires=(METADATA, CONTENT, SNAPSHOTS, MOUNT_MANAGER), config=Config, init=_init
)
