"""The `serve` section of a run file: which engines stay, where they answer, and how much at once."""

from typing import Any, Literal

from pydantic import Field, field_validator

from .secrets import refuse_key_as_variable
from .section import Name, Section

Face = Literal["score", "generate"]
"""What an engine is asked for: rows, or answers. One engine has one face, because vLLM's runners differ."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServeSection(Section):
    """How `fusechat serve` keeps the run's models as engines that stay; decides nothing in a run that starts its own."""

    name: Name = "fusechat"
    """Name of the service; starting it again changes the one that runs."""
    host: str = "127.0.0.1"
    """Address that the service listens on; any but this machine's own needs a token."""
    port: int = Field(8000, ge=0, le=65535)
    """Port of the service; 0: a free one."""
    token_variable: str = "FUSECHAT_TOKEN"
    """Environment variable that holds the bearer token; without a value the service asks for none."""
    faces: list[Face] = Field(["score"], min_length=1)
    """What each model's engines do: `score` (rows) and `generate` (answers); each face is an engine of its own."""
    model_faces: dict[Name, list[Face]] = {}
    """Model name -> its faces, where they differ from `faces`."""
    replicas: int = Field(1, ge=1)
    """Engines per model and face; with `max_replicas` the fewest."""
    max_replicas: int | None = Field(None, ge=1)
    """Most engines per model and face: more are started while requests queue; default: `replicas`."""
    idle_seconds: float = Field(600, gt=0)
    """How long fewer requests must come before an engine above `replicas` ends, seconds."""
    requests_in_flight: int = Field(64, ge=1)
    """Requests that one engine works on at once."""
    requests_waiting: int = Field(256, ge=0)
    """Requests that wait for each model's engines; a further one is refused with status 429."""
    max_tokens: int | None = Field(None, ge=16)
    """Longest dialogue that the engines read, tokens; default: twice `dialogues.max_tokens`, at most what the model reads."""
    max_request_mib: float = Field(64, gt=0)
    """Largest body of a request, MiB."""
    max_request_dialogues: int = Field(4096, ge=1)
    """Most dialogues of a request."""

    @field_validator("token_variable")
    @classmethod
    def _a_name(cls, value: str) -> str:
        refuse_key_as_variable(value, "token_variable", "FUSECHAT_TOKEN")
        return value

    @field_validator("max_replicas")
    @classmethod
    def _no_fewer(cls, value: int | None, info: Any) -> int | None:
        fewest = info.data.get("replicas", 1)
        if value is not None and value < fewest:
            raise ValueError(f"max_replicas is {value}, expected at least replicas, {fewest}")
        return value

    def faces_of(self, model: str) -> tuple[Face, ...]:
        """The faces of one model, each once."""
        return tuple(dict.fromkeys(self.model_faces.get(model, self.faces)))

    def check_models(self, names: list[str]) -> None:
        """Raises ValueError for a key of `model_faces` that is no model of the run."""
        if unknown := sorted(set(self.model_faces).difference(names)):
            raise ValueError(f"serve.model_faces: found {', '.join(unknown)}; the run's models are {', '.join(names)}")

    @property
    def is_on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK or self.host.startswith("127.")
