"""The engines of a service as its door knows them: what they are, and which processes they have. Importing this imports Ray's."""

import asyncio
import time
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from inference.serving.faces import Face

from ..ray_internals import serve_details
from .refusals import for_now
from .spec import ServiceSpec

ABOUT_SECONDS = 2.0
"""How long an engine may take to say what it is."""
CONTROLLER_SECONDS = 5.0
"""How long Serve's controller may take to say which replicas it has."""
STATUS_SECONDS = 1.0
"""How long what Serve said of its replicas is good for."""


class Engines:
    """Handles of the deployments that hold the engines, one for each face."""

    def __init__(self, spec: ServiceSpec, handles: dict[str, Any]) -> None:
        """
        Args:
            handles: id of a face -> handle of its deployment.
        """
        self._spec, self._handles = spec, handles
        self._known: dict[str, dict[str, Any]] = {}
        self._details: tuple[float, dict[str, Any]] = (float("-inf"), {})

    def of(self, face: Face) -> Any:
        """The handle of one face."""
        return self._handles[face.id]

    async def about(self) -> list[dict[str, Any]]:
        """What the engines of each face say that they are; nothing of one while none answers."""
        return list(await asyncio.gather(*map(self._about, self._spec.faces)))

    async def _about(self, face: Face) -> dict[str, Any]:
        if face.id not in self._known:  # engines of one recipe are alike
            try:
                async with asyncio.timeout(ABOUT_SECONDS):
                    self._known[face.id] = await self.of(face).about.remote()
            except (RayError, RayServeException, TimeoutError):
                return {}
        return self._known[face.id]

    async def replicas(self) -> dict[str, list[dict[str, Any]]]:
        """Id of a face -> its replicas as Serve knows them: `pid`, `node`, `state`.

        Raises:
            Refusal: Serve's controller does not answer.
        """
        asked, details = self._details
        if time.monotonic() - asked > STATUS_SECONDS:
            try:
                async with asyncio.timeout(CONTROLLER_SECONDS):
                    details = await asyncio.to_thread(serve_details)
            except (RayError, RayServeException, TimeoutError):
                raise for_now(503, "the service's controller is away and is being replaced") from None
            self._details = (time.monotonic(), details)
        deployments = details["applications"].get(self._spec.serve.name, {}).get("deployments", {})
        return {
            face.id: [
                {"pid": one["pid"], "node": one["node_ip"], "state": str(getattr(one["state"], "value", one["state"]))}
                for one in deployments.get(face.id, {}).get("replicas", [])
            ]
            for face in self._spec.faces
        }
