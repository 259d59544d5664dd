"""`run_on_ray`: does works on the connected Ray, as `fusechat.storage.work.run_here` does them in this process."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from fusechat.config import ClusterSection
from fusechat.progress import Progress, Task
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import Listener, Work

from .failures import raise_failures
from .placement import num_workers, placement_of
from .pooled_work import PooledWork
from .worker_pool import WorkerPool


class _Bar(Listener):
    """Moves a bar by what a unit's result counts in the work's measure."""

    def __init__(self, task: Task, work: Work) -> None:
        self._task, self._work = task, work

    def on_done(self, result: dict[str, Any]) -> None:
        name = self._work.name
        self._task.advance(result[self._work.measure], note=name if self._task.label != name else "")


def run_on_ray(
    works: Sequence[Work],
    cluster: ClusterSection,
    *,
    progress: Progress,
    workers_per_work: int | None = None,
    in_turn: bool = False,
    label: str = "",
    listen: Callable[[Work], Listener] | None = None,
    on_tick: Callable[[dict[str, int]], None] = lambda ready: None,
    pool: WorkerPool | None = None,
) -> list[Artifact]:
    """Do what is missing, and finish each work.

    Args:
        cluster: its `max_attempts` are the tries per unit before it is set aside.
        workers_per_work: default: as many as the cluster has room for at any time, at most one per unit.
        in_turn: each work begins when the one before is finished; else all go side by side.
        label: of one bar for all works, which are counted in one measure; default: a bar per work.
        listen: who shows how a work goes, in place of bars.
        on_tick: told at least every second the ready workers by the name of the work; what it raises ends the run.
        pool: one that stays after this call, with processes that later works may go on with; default: one for this call.
    Returns:
        the artifacts of all works.
    Raises:
        UserError: a worker's own, as it raised it.
        ClusterError: workers did not start, or units were set aside; works that failed are not finished, nor those beside them.
    """
    artifacts: list[Artifact] = []
    begun: list[PooledWork] = []
    with contextlib.ExitStack() as own:
        if pool is None:
            pool = own.enter_context(new_pool(cluster, progress, keeps_idle=in_turn))
        used = pool
        used.on_tick = lambda: on_tick({work.name: used.num_ready(work) for work in begun})
        for together in [[work] for work in works] if in_turn else [works]:
            with contextlib.ExitStack() as bars:
                show = listen or _bars(progress, bars, together, label)
                begun[:] = [_pooled(work, cluster, workers_per_work, show) for work in together if work.missing]
                used.run(begun)
            raise_failures(begun)
            artifacts += [artifact for work in together for artifact in work.finish()]
    return artifacts


def new_pool(cluster: ClusterSection, progress: Progress, *, keeps_idle: bool) -> WorkerPool:
    """An empty pool as the run file wants it; arguments as for `WorkerPool`."""
    return WorkerPool(max_attempts=cluster.max_attempts, on_event=progress.say, keeps_idle=keeps_idle)


def _pooled(work: Work, cluster: ClusterSection, wanted: int | None, listen: Callable[[Work], Listener]) -> PooledWork:
    placement = placement_of(work.needs, cluster)

    def workers_wanted(num_units: int) -> int:
        return num_workers(placement, num_units, wanted=wanted, max_gpus=cluster.max_gpus)

    return PooledWork(work, placement, workers_wanted, listen(work))


def _bars(
    progress: Progress, bars: contextlib.ExitStack, works: Sequence[Work], label: str
) -> Callable[[Work], Listener]:
    """Opens the bars of the works that have something left: one for all where there is a label."""

    def open_bar(name: str, shown: Sequence[Work], measure: str) -> Task:
        total, done = sum(work.total for work in shown), sum(work.done for work in shown)
        return bars.enter_context(progress.task(name, total, measure, done=done))

    measures = [work.measure for work in works if work.missing]
    if label and measures:
        task = open_bar(label, works, measures[0])
        return lambda work: _Bar(task, work)
    return lambda work: _Bar(open_bar(work.name, [work], work.measure), work)
