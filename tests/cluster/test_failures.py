"""What the pool says at its end: every failure in one error, a user's own as it was raised. Starts no Ray."""

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError

from cluster.pool.failures import raise_failures
from cluster.pool.placement import Placement
from cluster.pool.pooled_work import PooledWork
from fusechat.errors import ClusterError, EngineError, StorageError
from fusechat.storage.work import Work


def a_pooled_work(
    name: str, *, failure: BaseException | None = None, set_aside: dict[int, str] | None = None
) -> PooledWork:
    pooled = PooledWork(
        Work(
            name=name,
            missing=[],
            num_units=0,
            total=0,
            done=0,
            measure="parts",
            make_worker=NotImplemented,
            finish=list,
            unit_name=lambda unit: f"part {unit}",
        ),
        Placement(1, 0, "uni"),
        lambda left: 1,
    )
    pooled.failure, pooled.set_aside = failure, set_aside or {}
    return pooled


def test_failures_of_all_works_stand_in_one_error() -> None:
    works = [
        a_pooled_work("ann", failure=EngineError("rows differ\nby 3 nats")),
        a_pooled_work("bob", failure=ValueError("no\ntraceback")),
        a_pooled_work("cid", set_aside={7: "NaN", 2: "died"}),
    ]
    with pytest.raises(ClusterError) as raised:
        raise_failures(works)
    assert str(raised.value).splitlines()[1:] == [
        "  ann: no worker could start: rows differ",
        "by 3 nats",
        "  bob: no worker could start: no",
        "  set aside: cid, part 2: died",
        "  set aside: cid, part 7: NaN",
    ]
    assert raised.value.__cause__ is works[0].failure
    raise_failures([a_pooled_work("dan")])


def test_users_error_among_the_failures_is_raised_as_it_is() -> None:
    full = StorageError("no space left")
    with pytest.raises(StorageError) as raised:
        raise_failures(
            [a_pooled_work("ann", failure=EngineError("x")), a_pooled_work("bob", failure=full, set_aside={1: "y"})]
        )
    assert raised.value is full


def test_worker_that_was_put_on_a_dead_node_is_no_failed_start() -> None:
    """Ray needs seconds to see that a node died, and places workers there meanwhile."""
    pooled = a_pooled_work("ann")
    text = "The actor died because its node has died."
    pooled.count_failed_start(ActorDiedError(ActorDiedErrorContext(actor_id=bytes(16), error_message=text)))
    assert pooled.failed_starts == 0
    pooled.count_failed_start(ActorDiedError())
    assert pooled.failed_starts == 1
