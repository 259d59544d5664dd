"""The `cluster` and `plan` sections of a run file: where Ray lives, what workers reserve, what a plan reckons with."""

import os
import re

from pydantic import Field, field_validator

from ..errors import ConfigError
from .section import Section

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
ENV_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


class ClusterSection(Section):
    """Where the run's Ray lives, what its workers reserve, and how often they try."""

    address: str | None = None
    """Ray address (`auto`, `host:port`); default: RAY_ADDRESS of the environment, else a local Ray that the run starts and stops."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs of the local Ray; default: all."""
    max_attempts: int = Field(3, ge=1)
    """Tries per unit (a shard of extraction, alignment or merging, questions to answer) before it is set aside."""
    engines: int | None = Field(None, ge=1)
    """Engines per model that scores or answers; default: as many as the cluster has room for at any time, at most one per unit."""
    service: str = "auto"
    """Running engines that the run uses where their recipe is its own: `auto` (any service of this user on this machine), a
    service's name, its address (`http://head:8000`), or `off`."""
    units_in_flight: int = Field(2, ge=1)
    """Shards that an engine which scores works on at once, so that it does not drain between two."""
    storage_patience_seconds: float = Field(600, ge=0)
    """How long scored rows wait for a store that does not answer before their shard counts as failed, seconds."""
    engine_cpus: float = Field(1, gt=0)
    """CPUs that one engine reserves."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of the largest node: a wider engine is spread over nodes."""
    training_workers: int = Field(1, ge=1)
    """Processes that train one target together (Ray Train, DDP or FSDP2). Targets run side by side where the cluster has room."""
    training_cpus: float = Field(1, gt=0)
    """CPUs that one training worker reserves."""
    training_gpus: float | None = Field(None, ge=0)
    """GPUs that one training worker reserves; default: 1 where the cluster has any or may grow to any, else 0."""
    training_attempts: int = Field(3, ge=1)
    """Tries per target when a worker dies; each goes on from the last whole checkpoint."""
    max_gpus: int | None = Field(None, ge=1)
    """GPUs that an autoscaling cluster may grow to, from none if need be; default: those it has when a stage begins."""
    working_dir_excludes: list[str] = []
    """More of the working directory that `submit` leaves at home, in gitignore's syntax."""
    working_dir_mib: float = Field(100, gt=0)
    """Largest working directory that `submit` sends, MiB."""
    env_vars: dict[str, str] = {}
    """Environment of a submitted job; a secret only as a reference to the nodes' own, such as `HF_TOKEN: ${HF_TOKEN}`."""

    @property
    def ray_address(self) -> str | None:
        """Where a Ray is that was not started by this run: `address`, or what the cluster set for a job that runs on it.

        Raises:
            ConfigError: the address of a dashboard, as Ray's own commands for jobs take it.
        """
        address, origin = self.address, "cluster.address"
        if not address:
            address, origin = os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS of the environment"
        if address and address.startswith(("http://", "https://")):
            raise ConfigError(
                f"{origin}: found {address}, a dashboard, which takes jobs but no drivers; expected HOST:6379 of a running head, or "
                f"`auto` on one of its nodes; send the run there with `fusechat submit --address {address}`, or "
                + ("unset RAY_ADDRESS" if origin.startswith("RAY") else "leave it out")
                + " for a local Ray"
            )
        return address

    @field_validator("service", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: object) -> object:
        return "off" if value is False else value  # as YAML reads a bare `off`

    @field_validator("env_vars")
    @classmethod
    def _no_secret(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            if SECRET_NAME.search(name) and not ENV_REFERENCE.fullmatch(value):
                raise ValueError(
                    f"{name} is called like a secret, and the cluster shows a job's environment to everybody; set it "
                    f"on the nodes and write {name}: ${{{name}}}"
                )
        return values


class PlanSection(Section):
    """What `fusechat plan` reckons with; decides nothing in a run."""

    gpus: int = Field(8, ge=1)
    """GPUs of the fleet."""
    gpu_memory_gib: float = Field(79.6, gt=0)
    """Memory of one GPU, GiB; the default is an 80 GB card."""
    tflops: float = Field(989, gt=0)
    """Peak of one GPU in 16 bits without sparsity, TFLOP/s; the default is an H100 SXM."""
    prefill_utilisation: float = Field(0.5, gt=0, le=1)
    """Share of the peak that scoring reaches."""
    training_utilisation: float = Field(0.35, gt=0, le=1)
    """Share of the peak that training reaches."""
    decode_gib_per_second: float = Field(2000, gt=0)
    """Rate at which one GPU reads weights while it answers, GiB/s; the default is two thirds of an H100 SXM's bandwidth."""
    price_per_gpu_hour: float | None = Field(None, ge=0)
    """Price of one GPU for an hour, in any currency."""
    tokens: int | None = Field(None, ge=1)
    """Training tokens per model; default: counted where dialogues are tokenized, else estimated from the files."""
    tokens_per_dialogue: float = Field(1000, gt=0)
    """Mean length of a dialogue, where `tokens` is given."""
    response_share: float = Field(0.6, gt=0, le=1)
    """Share of the tokens that the assistant says, where `tokens` is given."""
    bytes_per_token: float = Field(4.0, gt=0)
    """UTF-8 bytes that one token spells, where dialogues are not tokenized yet."""
    tokens_per_second: dict[str, float] = {}
    """Measured rates: model name -> prefill tokens a second of one engine; in place of the FLOPs and the utilisation."""
    training_tokens_per_second: float | None = Field(None, gt=0)
    """Measured rate of training one target, tokens a second of one GPU."""
    cpus: int = Field(32, ge=1)
    """Cores that tokenize and align."""
    cpu_tokens_per_second: float = Field(20_000, gt=0)
    """Tokens that one core tokenizes, or aligns, in a second."""
    store_mib_per_second: float = Field(500, gt=0)
    """Rate at which one process reads and writes models, MiB/s."""
