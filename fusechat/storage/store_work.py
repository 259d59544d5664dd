"""The work of a row store: a store in; its missing shards, counted in rows, as one work out."""

from collections.abc import Callable, Sequence

from .artifact import Artifact
from .row_store import RowStore
from .work import Needs, Place, UnitLog, Work, Worker


def store_work(
    name: str,
    store: RowStore,
    make_worker: Callable[[Place], Worker],
    finish: Callable[[], Artifact],
    *,
    needs: Needs,
    log: UnitLog,
    missing: Sequence[int] | None = None,
) -> Work:
    """What is left of a claimed store.

    Args:
        missing: shards; default: those without a commit mark.
    """
    layout, missing = store.layout, store.missing_shards() if missing is None else missing
    return Work(
        name=name,
        missing=missing,
        num_units=layout.num_shards,
        total=layout.num_rows,
        done=layout.num_rows - layout.num_rows_of(missing),
        measure="rows",
        make_worker=make_worker,
        finish=lambda: [finish()],
        needs=needs,
        listener=log,
    )
