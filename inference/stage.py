"""The door of extraction: tokens of one model in, its logprobs store out.

`prepare` gives the work that is left: shards, each scored by a `TeacherWorker`. `cluster.extraction` does the works of all
models side by side.
"""

from functools import partial

import numpy as np

from fusechat.config import RunConfig
from fusechat.errors import ConfigError
from fusechat.models import model_files
from fusechat.progress import ShardLog
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.damage import sweep
from fusechat.storage.retry import patiently
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import TokensReader
from fusechat.storage.work import Needs, UnitLog, Work, nothing_left

from .engine.engine_worker import engine_settings
from .teacher_worker import ScoringInputs, TeacherWorker


def prepare(config: RunConfig, name: str) -> list[Work]:
    """Claim one model's store; give what is left of it as one work.

    Raises:
        ConfigError, ArtifactError: as `claim_store`.
    """
    claim, store = claim_store(config, name)
    if claim.artifact is not None:
        artifacts = [claim.artifact]
        return [nothing_left(name, lambda: artifacts)]
    patience = config.extraction.storage_patience_seconds
    missing = store.missing_shards()
    return [
        Work(
            name=name,
            missing=missing,
            num_units=store.plan.num_shards,
            total=store.plan.num_rows,
            done=store.plan.num_rows - store.plan.num_rows_of(missing),
            measure="rows",
            make_worker=partial(TeacherWorker, scoring_inputs(config, name)),
            finish=lambda: [patiently(partial(finish, claim, store), seconds=patience)],
            needs=Needs(
                engine_ranks=config.model_named(name).engine.tensor_parallel_size,
                units_in_flight=config.extraction.shards_in_flight,
            ),
            listener=UnitLog(ShardLog(config.log_path(f"extract.{name}"), name)),
        )
    ]


def scoring_inputs(config: RunConfig, name: str) -> ScoringInputs:
    """What the workers of one model are told."""
    extraction = config.extraction
    return ScoringInputs(
        model=config.model_named(name),
        tokens_url=config.tokens_url(name),
        store_url=config.logprobs_url(name),
        k=extraction.k,
        capture=extraction.capture,
        self_check_dialogues=extraction.self_check_dialogues,
        storage_patience_seconds=extraction.storage_patience_seconds,
    )


def claim_store(config: RunConfig, name: str) -> tuple[Claim, RowStore]:
    """Claim one model's logprobs folder and open its store, making it if need be; one process does this.

    Raises:
        ConfigError: k is larger than the vocabulary, or a dialogue longer than the model reads.
        ArtifactError: another plan's work stands there.
    """
    tokens_artifact = artifact.load(config.tokens_url(name), "tokens")
    tokens = TokensReader(config.tokens_url(name))
    vocab_size = int(tokens.attributes["vocab_size"])
    if config.extraction.k > vocab_size:
        raise ConfigError(f"extraction.k is {config.extraction.k}, the vocabulary of {name} has {vocab_size}; lower k")
    longest = int(tokens.lengths.max())
    limit = model_files.position_limit(model_files.resolve_model(config.model_named(name)))
    if limit and longest > limit:
        raise ConfigError(
            f"{name}: its longest dialogue has {longest:,} tokens, the model reads {limit:,}; lower dialogues.max_tokens"
        )
    settings = _settings(config, name)
    url = config.logprobs_url(name)
    claim = artifact.claim(
        url, "logprobs", settings=settings, parents={"tokens": tokens_artifact}, if_changed=config.run.if_changed
    )
    store = RowStore.create(
        url, "logprobs", tokens.plan(config.extraction.shard_tokens), k=config.extraction.k, vocab_size=vocab_size,
        logprob_step=config.extraction.logprob_step,
        settings={**settings, "tokens": tokens_artifact.fingerprint},
    )  # fmt: skip
    return claim, store


def finish(claim: Claim, store: RowStore) -> Artifact:
    """Write the record of a store that has all its shards.

    Raises:
        ArtifactError: a commit mark is damaged.
    """
    sweep(store)
    labels = store.label_logprobs()
    scored = np.isfinite(labels)
    return claim.finish(
        {
            "shards": store.plan.num_shards,
            "dialogues": store.plan.num_dialogues,
            "rows": store.plan.num_rows,
            "rows_without_score": int((~scored).sum()),
            "mean_label_logprob": round(float(labels[scored].mean()), 6) if scored.any() else None,
            "bytes": store.num_bytes(),
        }
    )


def _settings(config: RunConfig, name: str) -> dict:
    """All that decides the rows: where one of these differs, rows must not be mixed."""
    model, extraction = config.model_named(name), config.extraction
    digests = model_files.digests(model_files.resolve_model(model), config.digests_path)
    return {
        "model": model.model,
        "revision": model.revision,
        "digests": digests,
        **engine_settings(model.engine),
        "capture": extraction.capture,
        "k": extraction.k,
        "logprob_step": extraction.logprob_step,
        "shard_tokens": extraction.shard_tokens,
    }
