"""A run finds a service: engines that run already and have the run's own recipe. Imports no Ray.

Goes in: `cluster.service` of the run file, a recipe. Comes out: where an engine of that recipe answers, or None, and what people
are told of it. The rows are those of an engine of the run's own; on CPUs to the bit.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fusechat.config import ClusterSection
from fusechat.config.serve import ServeSection
from fusechat.errors import ClusterSetupError, FuseChatError
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import HERE, Work
from inference.serving.client import Connection
from inference.serving.faces import FaceName
from inference.serving.remote_engine import ServedBy

from .records import all_records, read_record

PATIENCE_SECONDS = 180.0
"""How long a run asks a service that does not answer: an engine that died is back by then."""
UNITS_AT_ONCE = 2
"""Shards that are asked for at once, so that the engine does not wait for the store."""


@dataclass(frozen=True)
class _Running:
    """A service that answered."""

    name: str
    address: str
    token_variable: str | None
    models: tuple[dict[str, Any], ...]


class RunningServices:
    """The services that a run may use; each was asked once what it has."""

    def __init__(self, section: ClusterSection, *, progress: Progress) -> None:
        """
        Raises:
            ClusterSetupError: the service that the run names is not there.
        """
        self._say = progress.say
        self._services = _ask(section.service, progress.say)

    def find(self, face: FaceName, name: str, recipe: Callable[[], str], longest: int) -> ServedBy | None:
        """An engine for a model of the run.

        Args:
            name: of the model in the run.
            recipe: gives the fingerprint that its engine has; asked only where a service has such a face.
            longest: tokens of the longest dialogue, or of the longest prompt and its answer.
        """
        for service in self._services:
            offers = [(model["id"], model["faces"][face]) for model in service.models if face in model["faces"]]
            if not offers:
                continue
            wanted = recipe()
            for model, offer in offers:
                if offer["recipe"] == wanted and offer["max_tokens"] >= longest:
                    self._say(
                        f"{name}: the service {service.name} at {service.address} has its engine ({face}, recipe {wanted})"
                    )
                    return ServedBy(
                        service.name, service.address, service.token_variable, model, face, wanted, offer.get("k", 1),
                        offer["max_tokens"], PATIENCE_SECONDS,
                    )  # fmt: skip
            self._say(
                f"{name}: {_why_not(service, name, offers, wanted, longest)}; the run starts an engine of its own"
            )
        return None


def _why_not(
    service: _Running, name: str, offers: Sequence[tuple[str, dict[str, Any]]], wanted: str, longest: int
) -> str:
    same = [offer for _, offer in offers if offer["recipe"] == wanted]
    if same:
        return (
            f"the service {service.name} reads {same[0]['max_tokens']} tokens, the run has {longest} (serve.max_tokens)"
        )
    named = [offer["recipe"] for model, offer in offers if model == name]
    found = (
        f"has it under recipe {named[0]}" if named else f"has no such model ({', '.join(model for model, _ in offers)})"
    )
    return f"the service {service.name} {found}, the run's recipe is {wanted}"


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


def run_served(work: Work, progress: Progress, *, on_tick: Callable[[], None] = lambda: None) -> Artifact:
    """Do a work whose engine a service has: in this process, several units at once.

    Args:
        on_tick: called after each unit; what it raises ends the work.
    Raises:
        Exception: what a unit raises; those that are done are kept.
    """
    with progress.task(work.name, work.total, work.measure, done=work.done) as task:
        worker = work.make_worker(HERE)
        worker.start()
        work.listener.on_started()
        threads = ThreadPoolExecutor(UNITS_AT_ONCE, thread_name_prefix="served")
        try:
            for unit, result in zip(work.missing, threads.map(worker.run_unit, work.missing), strict=True):
                task.advance(result[work.measure])
                work.listener.on_done({"shard": unit, "attempt": 1, **result})
                on_tick()
        finally:
            threads.shutdown(cancel_futures=True)
            worker.close()
    (artifact,) = work.finish()
    return artifact
