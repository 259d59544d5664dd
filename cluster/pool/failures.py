"""What went wrong in the pool, in words that people read."""

from ray.exceptions import RayActorError, RayTaskError

from fusechat.errors import ClusterError, FuseChatError, UserError, first_line

from .pooled_work import PooledWork

MAX_REASON = 300
"""Characters of Ray's account of a death."""


def raise_failures(works: list[PooledWork]) -> None:
    """End with what failed, if anything did; all that was done is kept.

    Raises:
        UserError: a pooled's own, as its worker raised it.
        ClusterError: works whose workers did not start, and shards that were set aside; all are named.
    """
    failures = {pooled.name: pooled.failure for pooled in works if pooled.failure is not None}
    for failure in failures.values():
        if isinstance(failure, UserError):
            raise failure
    lines = [
        f"  {name}: no worker could start: {failure if isinstance(failure, FuseChatError) else reason_of(failure)}"
        for name, failure in failures.items()
    ]
    lines += [
        f"  set aside: {pooled.name}, {pooled.work.unit_name(unit)}: {why}"
        for pooled in works
        for unit, why in sorted(pooled.set_aside.items())
    ]
    if lines:
        raise ClusterError(
            "not all could be done; the rest is kept, and the same command tries again:\n" + "\n".join(lines)
        ) from next(iter(failures.values()), None)


def reason_of(error: BaseException) -> str:
    """What a person wants to know of an error: the last line of a task's, Ray's own reason for a death."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayTaskError) and lines:
        return lines[-1]
    if isinstance(error, RayActorError):
        reasons = [line for line in lines[1:] if ":" not in line.split(" ")[0]]
        return " ".join([*lines[:1], *reasons])[:MAX_REASON]
    return first_line(error)
