"""What a service is to be: a run in; all that its deployment needs out. Cheap to send, holds no secret."""

import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from fusechat.config import ClusterSection, RunConfig
from fusechat.config.serve import ServeSection
from fusechat.errors import ConfigError
from inference.serving.faces import Face, faces_of

from .records import Process, ServiceRecord

MIN_TOKEN = 16
"""Characters of a token off loopback: a shorter one can be guessed."""


@dataclass(frozen=True)
class ServiceSpec:
    """A service as it is deployed."""

    serve: ServeSection
    cluster: ClusterSection
    faces: tuple[Face, ...]
    port: int
    """That it listens on."""
    token_digest: str | None
    """SHA-256 of the token; None: it asks for none."""

    @property
    def address(self) -> str:
        """http URL of its door, as this machine reaches it."""
        host = "127.0.0.1" if self.serve.host in ("0.0.0.0", "::", "localhost") else self.serve.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def record(self, ray_address: str, keeper: Process | None) -> ServiceRecord:
        """What is written down of it once every engine answers.

        Args:
            ray_address: of the Ray that it runs on.
            keeper: holds that Ray where it was started for the service.
        """
        has_token = self.token_digest is not None
        return ServiceRecord(self.serve.name, self.address, ray_address, self.serve.token_variable, has_token, keeper)


def make_spec(config: RunConfig, names: Sequence[str], *, port: int | None = None) -> ServiceSpec:
    """The service of a run.

    Args:
        names: models; empty: all of the run.
        port: that a running service has; None: the run's, or a free one.
    Raises:
        ConfigError: no such model, a port that is taken, or no token for an address that others reach.
        ModelError: a model that is not there.
    """
    serve = config.serve
    token = os.environ.get(serve.token_variable) or None
    if not serve.is_on_loopback and (token is None or len(token) < MIN_TOKEN):
        raise ConfigError(
            f"serve.host is {serve.host}, which other machines reach: set the environment variable {serve.token_variable} to a "
            f"token of at least {MIN_TOKEN} characters (`openssl rand -hex 32`), or leave serve.host out"
        )
    digest = None if token is None else hashlib.sha256(token.encode()).hexdigest()
    models = [config.model_named(name) for name in names] or config.models
    longest = config.dialogues.max_tokens
    faces = faces_of(config.layout, config.pivot, models, serve, config.extraction, dialogue_tokens=longest)
    return ServiceSpec(serve, config.cluster, tuple(faces), port or _free_port(serve), digest)


def _free_port(serve: ServeSection) -> int:
    family = socket.AF_INET6 if ":" in serve.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serve.host, serve.port))
        except OSError as error:
            raise ConfigError(
                f"serve.port is {serve.port}, which {serve.host} does not give ({error.strerror}); choose another, or 0 for a free one"
            ) from None
        port: int = probe.getsockname()[1]
        return port
