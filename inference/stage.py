"""The door of extraction: tokens of one model in, its logprobs store out.

`run` scores all missing shards in this process. On Ray, `cluster/` uses the same pieces: `claim_store` once in the
driver, a TeacherActor per engine, `finish` at the end.
"""

import numpy as np

from fusechat.config import RunConfig
from fusechat.errors import ConfigError
from fusechat.models import model_files
from fusechat.models.model_limits import position_limit
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.damage import sweep
from fusechat.storage.lease import held
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import TokensReader

from .engine.engine_actor import engine_settings
from .teacher_actor import TeacherActor


def run(config: RunConfig, name: str, *, progress: Progress | None = None) -> Artifact:
    """Score every missing shard of one model, without Ray.

    Raises:
        ArtifactError: the store there was made by another plan.
        BusyError: another driver is writing the store.
        TeacherError: the engine died, or failed its self-check; finished shards are kept.
    """
    progress = progress or Progress(quiet=True)
    with held(config.logprobs_url(name), config.run.if_changed):
        claim, store = claim_store(config, name)
        if claim.artifact is not None:
            return claim.artifact
        missing = store.missing_shards()
        if missing:
            actor = TeacherActor(config.dump(), name)
            actor.start()
            done = store.plan.num_rows - store.plan.num_rows_of(missing)
            with progress.task(f"extract {name}", store.plan.num_rows, "rows", done=done) as task:
                for shard in missing:
                    task.advance(actor.run_shard(shard)["rows"])
            actor.close()
        return finish(claim, store)


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
    limit = position_limit(model_files.resolve_model(config.model_named(name)))
    # vLLM's prompt logprobs come with one sampled token, which takes a position behind the dialogue.
    behind = 1 if config.extraction.capture == "prompt_logprobs" else 0
    if limit and longest + behind > limit:
        raise ConfigError(
            f"{name}: its longest dialogue has {longest:,} tokens, the model reads {limit - behind:,}"
            f"{' beside the token that prompt_logprobs samples' if behind else ''}; lower dialogues.max_tokens"
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
    digests = model_files.digests(model_files.resolve_model(model), config.run.output / "digests.json")
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
