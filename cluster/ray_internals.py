"""The private parts of Ray that are used, each with the reason. Importing this imports Ray.

Tests hold them against the installed release (tests/cluster/test_ray_internals.py).
"""

from typing import Any

from ray.job_submission import JobSubmissionClient


class TimedJobClient(JobSubmissionClient):
    """The job SDK with a limit on each request, which its own requests lack: a dashboard that hangs would hang the command."""

    def __init__(self, address: str, request_seconds: float) -> None:
        self.request_seconds = request_seconds
        super().__init__(address)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": self.request_seconds, **options})

    def ray_version(self) -> str:
        """Of the cluster. The SDK's own `get_version` gives the version of its protocol."""
        return str(self._do_request("GET", "/api/version").json()["ray_version"])


def serve_details() -> dict[str, Any]:
    """What Serve knows of its applications, down to the process of each replica; `serve.status()` leaves the processes out."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    details: dict[str, Any] = client.get_serve_details()
    return details


def serve_listens_on() -> tuple[str, int] | None:
    """Host and port of a Serve that runs on the connected Ray; None: none runs. They cannot be changed while it does."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)
