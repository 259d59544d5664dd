"""A run finds a service: engines that run already and have the run's own recipe. Imports no Ray.

Goes in: `cluster.service` of the run file, and works with the recipes of their engines. Comes out: what such engines did of them,
and what people are told of it. Rows are those of an engine of the run's own; on CPUs to the bit.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fusechat.config import ClusterSection, ExtractionSection
from fusechat.config.serve import ServeSection
from fusechat.errors import ClusterSetupError, FuseChatError
from fusechat.models.resolved_model import ResolvedModel
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import HERE, Work
from inference.serving.client import Connection
from inference.serving.faces import FaceName, recipe_of
from inference.serving.remote_engine import ServedBy, longest_of, served_work

from .records import all_records, read_record

PATIENCE_SECONDS = 180.0
"""How long a run asks a service that does not answer: an engine that died is back by then."""


@dataclass(frozen=True)
class _Running:
    """A service that answered."""

    name: str
    address: str
    token_variable: str | None
    models: tuple[dict[str, Any], ...]

    def offers(self, face: FaceName) -> dict[str, dict[str, Any]]:
        """Models that have an engine with this face, and what it is."""
        return {model["id"]: model["faces"][face] for model in self.models if face in model["faces"]}


@dataclass(frozen=True)
class Sought:
    """A work that an engine of a service may do."""

    work: Work
    face: FaceName
    recipes: Callable[[Mapping[str, Any]], Sequence[str]]
    """Fingerprints that say what an engine of the run's own says, given what the service says of its engine; asked only where a
    service has that face.
    """


def sought_as(work: Work, face: FaceName, model: ResolvedModel, template: str, section: ExtractionSection) -> Sought:
    """A work whose engine reads a model as it is under a template."""
    return Sought(work, face, lambda engine: [recipe_of(face, model, template, section)])


class RunningServices:
    """The services that a run may use; each was asked once what it has."""

    def __init__(self, section: ClusterSection, *, progress: Progress) -> None:
        """
        Raises:
            ClusterSetupError: the service that the run names is not there.
        """
        self._say = progress.say
        self._services = _ask(section.service, progress.say)

    def find(self, sought: Sought) -> ServedBy | None:
        """An engine for a work of the run; people are told which, or why none."""
        name = sought.work.name
        for service in self._services:
            offers = service.offers(sought.face)
            if not offers:
                continue
            served, why = _choose(service, sought, offers)
            if served is None:
                self._say(f"{name}: the service {service.name} {why}; the run starts an engine of its own")
                continue
            of = f"{sought.face}, recipe {served.recipe}"
            self._say(f"{name}: the service {service.name} at {service.address} has its engine ({of})")
            return served
        return None


def _choose(service: _Running, sought: Sought, offers: Mapping[str, Mapping[str, Any]]) -> tuple[ServedBy | None, str]:
    """The engine that does the work, or why there is none.

    Args:
        offers: model as the service calls it -> what its engine is.
    """
    recipes: list[str] = []
    for model, offer in offers.items():
        engine, recipe, reads = offer.get("engine", {}), offer["recipe"], offer["max_tokens"]
        recipes = list(sought.recipes(engine))
        if recipe not in recipes:
            continue
        longest = longest_of(sought.work)
        if longest > reads:
            return None, f"reads {reads} tokens, the run has {longest} (serve.max_tokens)"
        served = ServedBy(
            service.name, service.address, service.token_variable, model, sought.face, recipe, offer.get("k", 1), reads,
            PATIENCE_SECONDS, engine,
        )  # fmt: skip
        return served, ""
    has = ", ".join(f"{model} under recipe {offer['recipe']}" for model, offer in offers.items())
    return None, f"has {has}, the run's recipe is {' or '.join(recipes)}"


def _ask(wanted: str, say: Callable[[str], None]) -> list[_Running]:
    """What the services that `cluster.service` means answer."""
    if wanted == "off":
        return []
    if wanted.startswith(("http://", "https://")):
        variable = ServeSection.model_fields["token_variable"].default
        return [_asked(wanted, wanted, variable)]
    if wanted == "auto":
        running = []
        for record in all_records():
            if not record.may_run:
                continue
            try:
                running.append(_asked(record.name, record.address, record.token_variable))
            except ClusterSetupError as error:
                say(f"{error}; the run goes on without it")
        return running
    named = read_record(wanted)
    if named is None:
        names = ", ".join(one.name for one in all_records()) or "none"
        raise ClusterSetupError(
            f"cluster.service: found {wanted}, the services started here are: {names}; expected auto, off, one of them or an address"
        )
    return [_asked(named.name, named.address, named.token_variable)]


def _asked(name: str, address: str, token_variable: str) -> _Running:
    """Raises ClusterSetupError where the service does not answer or does not let the run in."""
    try:
        with Connection(address, token=os.environ.get(token_variable), patience=0, seconds=10) as connection:
            return _Running(name, address, token_variable, tuple(connection.models()))
    except FuseChatError as error:
        raise ClusterSetupError(f"cluster.service: {name} cannot be used: {error}") from error


def do_works(
    section: ClusterSection,
    sought: Sequence[Sought],
    do_own: Callable[[list[Work]], list[Artifact]],
    *,
    progress: Progress,
    on_tick: Callable[[], None] = lambda: None,
) -> dict[str, Artifact]:
    """Do works of one artifact each: by a running service those whose engine it has, the others as `do_own` does.

    Args:
        do_own: does works by engines of the run's own, and gives their artifacts in order.
        on_tick: as for `do_served`.
    Returns:
        name of a work -> its artifact.
    """
    served = do_served(section, sought, progress=progress, on_tick=on_tick)
    left = [one.work for one in sought if one.work.name not in served]
    own = dict(zip([work.name for work in left], do_own(left), strict=True))
    return {name: artifact for name, (artifact,) in served.items()} | own


def do_served(
    section: ClusterSection,
    sought: Sequence[Sought],
    *,
    progress: Progress,
    on_tick: Callable[[], None] = lambda: None,
) -> dict[str, list[Artifact]]:
    """Do the works whose engine a running service has.

    Args:
        on_tick: called after each unit; what it raises ends the work.
    Returns:
        name of a work -> its artifacts; what no service can do is left out, and what is finished already.
    Raises:
        ClusterSetupError: as `RunningServices`.
        Exception: what a unit raises; those that are done are kept.
    """
    begun = [one for one in sought if one.work.missing]
    if not begun:
        return {}
    services = RunningServices(section, progress=progress)
    engines = [(one.work, services.find(one)) for one in begun]
    return {
        work.name: _run(served_work(work, engine), progress, on_tick) for work, engine in engines if engine is not None
    }


def _run(work: Work, progress: Progress, on_tick: Callable[[], None]) -> list[Artifact]:
    """Do a work in this process, as many units at once as its worker takes, so that the engine does not wait for the store."""
    with progress.task(work.name, work.total, work.measure, done=work.done) as task:
        worker = work.make_worker(HERE)
        worker.start()
        work.listener.on_started()
        threads = ThreadPoolExecutor(work.needs.units_in_flight, thread_name_prefix="served")
        try:
            for unit, result in zip(work.missing, threads.map(worker.run_unit, work.missing), strict=True):
                task.advance(result[work.measure])
                work.listener.on_done({"shard": unit, "attempt": 1, **result})
                on_tick()
        finally:
            threads.shutdown(cancel_futures=True)
            worker.close()
    return work.finish()
