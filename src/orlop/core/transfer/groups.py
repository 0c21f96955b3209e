"""Errors of tasks that work side by side."""

from orlop.base.errdefs import OrlopError


def first_error(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group that its caller should see: ours before others, the first of its kind."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [failures]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, OrlopError)), flat[0])
