"""A cluster's job server: an address in, a client that answers, and a job that a node has taken, out."""

import os
from pathlib import Path
from typing import Any

from fusechat.errors import ClusterSetupError, first_line
from fusechat.storage.retry import retried

REQUEST_SECONDS = 60.0
"""A request to the dashboard that takes longer counts as a lost connection."""
AGENT_PATIENCE_SECONDS = 60.0
"""How long a job is offered to a cluster that has just started."""


def connect(address: str) -> Any:
    """A client of the job server.

    Raises:
        ClusterSetupError: no Ray at the address, a wrong token, or another version of Ray.
    """
    # Ray reads the mode when it is imported; a token that is there is meant to be used.
    if _token_is_there():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # they would win over the address that was asked for
    import ray
    import requests
    from ray.exceptions import AuthenticationError

    from ..ray_internals import TimedJobClient

    if "://" not in address:
        address = f"http://{address}"
    try:
        client = TimedJobClient(address, REQUEST_SECONDS)
        ray_there = client.ray_version()
    except AuthenticationError as error:
        raise ClusterSetupError(
            f"{address}: the cluster refused the token ({first_line(error)}); set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
            "to the cluster's own"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, KeyError, requests.RequestException) as error:
        raise ClusterSetupError(
            f"{address}: no Ray dashboard there ({first_line(error)}); expected http://HEAD:8265 of a running cluster"
        ) from None
    if ray_there.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise ClusterSetupError(
            f"{address}: the cluster runs Ray {ray_there}, this is Ray {ray.__version__}; install ray=={ray_there} here, or use "
            f"an image with Ray {ray.__version__} there"
        )
    return client


def _token_is_there() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return (Path.home() / ".ray" / "auth_token").is_file()


def submit_when_ready(client: Any, **job: Any) -> str:
    """Submit a job; gives its id. A cluster that has just started answers before its nodes can take a job.

    Raises:
        ClusterSetupError: it cannot after that time.
        RuntimeError: it refuses the job.
    """
    try:
        submission_id: str = retried(
            lambda: client.submit_job(**job), seconds=AGENT_PATIENCE_SECONDS, passes=_has_no_agent
        )
        return submission_id
    except RuntimeError as error:
        if not _has_no_agent(error):
            raise
        raise ClusterSetupError(
            f"{client.get_address()}: no node took the job within {AGENT_PATIENCE_SECONDS:g} s; see that the cluster's nodes "
            "are up (`ray status`), then submit again"
        ) from error


def _has_no_agent(error: BaseException) -> bool:
    return "No available agent" in str(error)
