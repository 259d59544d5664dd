"""A service on the connected Ray: its spec becomes one Ray Serve application. Importing this imports Ray Serve."""

import logging
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from fusechat.errors import ClusterError, ClusterSetupError, first_line
from fusechat.storage.work import Needs
from inference.serving.faces import Face

from ..pool.placement import Placement, placement_of
from ..ray_internals import serve_listens_on
from .door import Door
from .replicas import GenerateReplica, ScoreReplica
from .spec import ServiceSpec

DOOR_REQUESTS = 10_000
"""Requests at the door at once; those that wait for an engine are counted there."""
START_ATTEMPTS = 2
"""Starts of an engine before its deployment counts as failed."""
BUSY_SECONDS = 10.0
"""How long more requests must queue than the engines work on before another one is started."""
HEALTH_SECONDS = 2.0
"""Between two looks at whether an engine lives."""
LEAVE_SECONDS = 30.0
"""How long an engine that is replaced may go on with what it has begun."""


def deploy(spec: ServiceSpec) -> None:
    """Start the service, or change the one of that name: engines of the same recipe stay as they are.

    Returns when every engine answers.
    Raises:
        ClusterSetupError: too few CPUs or GPUs, Serve listens elsewhere, or another application has the door's place.
        ClusterError: an engine did not start.
    """
    placements = [
        placement_of(Needs(engine_ranks=face.model.engine.tensor_parallel_size), spec.cluster) for face in spec.faces
    ]
    check_room(spec, placements)
    check_address(spec)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(
        proxy_location="HeadOnly", logging_config=quiet,
        http_options=HTTPOptions(host=spec.serve.host, port=spec.port, keep_alive_timeout_s=90),
    )  # fmt: skip
    engines = {face.id: _engine(face, spec, place) for face, place in zip(spec.faces, placements, strict=True)}
    make_door: Any = serve.deployment(Door)
    door = make_door.options(
        name="door", num_replicas=1, max_ongoing_requests=DOOR_REQUESTS, ray_actor_options={"num_cpus": 0},
        health_check_period_s=HEALTH_SECONDS, logging_config=quiet,
    )  # fmt: skip
    try:
        serve.run(door.bind(spec, engines), name=spec.serve.name, route_prefix="/", logging_config=quiet)
    except Exception as error:  # Serve raises plain RuntimeErrors, ray's errors and its own
        raise ClusterError(f"{spec.serve.name}: the service did not start: {_reason(spec, error)}") from error


def _engine(face: Face, spec: ServiceSpec, placement: Placement) -> Any:
    """The deployment of one face."""
    section = spec.serve
    most = section.max_replicas or section.replicas
    scaling: dict[str, Any] = {"num_replicas": section.replicas}
    if most > section.replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": section.replicas, "max_replicas": most,
                "target_ongoing_requests": max(1, section.requests_in_flight // 2),
                "upscale_delay_s": BUSY_SECONDS, "downscale_delay_s": section.idle_seconds,
            }
        }  # fmt: skip
    place: dict[str, Any] = {"ray_actor_options": {"num_cpus": placement.num_cpus, "num_gpus": placement.num_gpus}}
    if not placement.is_on_one_node:  # Ray starts the ranks, one in each bundle
        place = {
            "ray_actor_options": {"num_cpus": 1, "num_gpus": 0}, "placement_group_strategy": "PACK",
            "placement_group_bundles": [{"CPU": 1, "GPU": 1}] * placement.num_gpus,
        }  # fmt: skip
    kind: Any = serve.deployment(ScoreReplica if face.kind == "score" else GenerateReplica)
    deployment = kind.options(
        name=face.id, max_ongoing_requests=section.requests_in_flight,
        max_queued_requests=section.requests_waiting, max_constructor_retry_count=START_ATTEMPTS,
        health_check_period_s=HEALTH_SECONDS, graceful_shutdown_timeout_s=LEAVE_SECONDS,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False), **scaling, **place,
    )  # fmt: skip
    return deployment.bind(face, placement.place().executor_backend)


def check_room(spec: ServiceSpec, placements: list[Placement]) -> None:
    """Raises ClusterSetupError where the engines reserve more than the cluster has or may grow to."""
    resources = ray.cluster_resources()
    engines = spec.serve.replicas
    cpus, gpus = (
        engines * sum(values) for values in zip(*((one.num_cpus, one.num_gpus) for one in placements), strict=True)
    )
    has_gpus = max(resources.get("GPU", 0), spec.cluster.max_gpus or 0)
    if (cpus <= resources.get("CPU", 0) and gpus <= has_gpus) or (spec.cluster.max_gpus and gpus <= has_gpus):
        return
    raise ClusterSetupError(
        f"the service's {engines * len(placements)} engines reserve {cpus:g} CPUs and {gpus:g} GPUs, Ray has "
        f"{resources.get('CPU', 0):g} and {has_gpus:g}; serve fewer models (--models) or faces, or lower cluster.engine_cpus"
    )


def check_address(spec: ServiceSpec) -> None:
    """Raises ClusterSetupError where Serve listens elsewhere already: it cannot be moved while it runs."""
    place = serve_listens_on()
    if place is not None and place != (spec.serve.host, spec.port):
        raise ClusterSetupError(
            f"Ray Serve runs on this cluster and listens on {place[0]}:{place[1]}; set serve.host and serve.port to that, or "
            "stop what it serves first"
        )


def remove(name: str) -> None:
    """End the service of that name, and Serve with it where nothing else is served."""
    if serve_listens_on() is None:
        return
    serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def _reason(spec: ServiceSpec, error: Exception) -> str:
    """What Serve says of the engine that failed; else the error's own first line."""
    application = serve.status().applications.get(spec.serve.name)
    messages = (
        []
        if application is None
        else [f"{name}: {one.message}" for name, one in application.deployments.items() if one.message]
    )
    text = messages[0] if messages else first_line(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error:" in line]
    return (named or lines)[-1][:600]
