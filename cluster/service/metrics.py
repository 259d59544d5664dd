"""What a service counts, in Prometheus' form."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from inference.serving.faces import Face

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counts of one door."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a line for the beginning of each count, which nobody asks for
        self._registry = CollectorRegistry()
        own: Any = {"registry": self._registry}
        self._requests = Counter(
            "fusechat_requests", "Requests, by path, model and status", ["path", "model", "status"], **own
        )
        self._seconds = Histogram(
            "fusechat_request_seconds", "Until the head of the reply", ["path"], buckets=SECONDS, **own
        )
        self._in_flight = Gauge("fusechat_requests_in_flight", "Requests that wait for their reply", **own)
        self._rows = Counter("fusechat_rows", "Rows given", ["model"], **own)
        self._tokens = Counter("fusechat_tokens", "Tokens of the dialogues that were scored", ["model"], **own)
        self._replicas = Gauge("fusechat_replicas", "Engines, by state", ["model", "face", "state"], **own)

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """For the time of a request."""
        with self._in_flight.track_inprogress():
            yield

    def count(self, path: str, model: str, status: int, seconds: float) -> None:
        """A request that was answered. Paths and models that the service does not have share one line."""
        path = "other" if status in (404, 405) and not model else path
        self._requests.labels(path, model, status).inc()
        self._seconds.labels(path).observe(seconds)

    def add_rows(self, model: str, rows: int, tokens: int) -> None:
        """Rows that were given."""
        self._rows.labels(model).inc(rows)
        self._tokens.labels(model).inc(tokens)

    def set_replicas(self, faces: Sequence[Face], replicas: dict[str, list[dict[str, Any]]]) -> None:
        """How many engines each face has, by state."""
        self._replicas.clear()
        for face in faces:
            for one in replicas[face.id]:
                self._replicas.labels(face.name, face.kind, one["state"]).inc()

    def text(self) -> bytes:
        """All counts."""
        return generate_latest(self._registry)
