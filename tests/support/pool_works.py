"""Works of the pool whose workers hold no model: they live, die and fail as they are told."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray import cloudpickle

from cluster.pool.placement import Placement
from fusechat.errors import ArtifactError, ContractError, EngineError, ModelError, StorageError
from fusechat.storage.work import HERE, Listener, Needs, Place, Work

# Workers do not have the folder of the tests on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


ONE_CPU = Placement(1, 0, "uni")


USER_ERRORS = {
    "no space left": StorageError,
    "tokens are damaged": ArtifactError,
    "another model": ModelError,
    "NaN": ContractError,
}


class SimulatedTeacher:
    """A worker without a model; leaves one file per finished shard, and misbehaves on request."""

    def __init__(self, folder: str, behaviour: dict[int, str], start: str = "", place: Place = HERE) -> None:
        self.folder, self.behaviour, self.start_behaviour = Path(folder), behaviour, start

    def start(self) -> dict[str, Any]:
        (self.folder / f"start.{os.getpid()}").touch()
        if self.start_behaviour == "self-check":
            raise EngineError("rows differ from a plain forward by 3.2 nats")
        if self.start_behaviour == "die":
            os._exit(1)
        served_before = (self.folder / "used" / f"start.{os.getpid()}").exists()
        if self.start_behaviour == "self-check in a used process" and served_before:
            raise EngineError("something was left")
        return {}

    def run_unit(self, shard: int) -> dict[str, Any]:
        with (self.folder / f"tried.{shard}").open("a") as file:
            file.write("x")
        tried = (self.folder / f"tried.{shard}").stat().st_size
        (self.folder / f"process.{shard}").write_text(str(os.getpid()))
        behaviour = self.behaviour.get(shard)
        while behaviour == "waits" and (self.folder / f"hold.{shard}").exists():
            time.sleep(0.01)
        while behaviour == "waits for both" and not all(
            list(self.folder.parent.glob(f"{name}/start.*")) for name in ("one", "two")
        ):
            time.sleep(0.01)
        if behaviour in USER_ERRORS:
            raise USER_ERRORS[behaviour](behaviour)
        if behaviour == "always dies" or (behaviour == "dies once" and tried == 1):
            os._exit(1)
        if behaviour == "raises" or (behaviour == "raises once" and tried == 1):
            raise ValueError(f"shard {shard} cannot be scored")
        time.sleep(0.01)
        (self.folder / f"done.{shard}").touch()
        return {"rows": 10 + shard}

    def close(self) -> None:
        (self.folder / f"closed.{os.getpid()}").touch()


class Results(Listener):
    """Keeps what units gave."""

    def __init__(self, on_result: Callable[[list[dict]], None] = lambda results: None) -> None:
        self.results: list[dict] = []
        self._on_result = on_result

    def on_done(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        self._on_result(self.results)


def a_work(name: str, folder: Path, units: int, behaviour: dict[int, str] | None = None, start: str = "") -> Work:
    make_worker = partial(SimulatedTeacher, str(folder), behaviour or {}, start)
    return Work(
        name=name, missing=range(units), num_units=units, total=units, done=0, measure="rows",
        make_worker=lambda place: make_worker(place=place), finish=list, needs=Needs(units_in_flight=2),
        unit_name="part {}".format,
    )  # fmt: skip


def done_shards(folder: Path) -> set[int]:
    return {int(path.suffix[1:]) for path in folder.glob("done.*")}
