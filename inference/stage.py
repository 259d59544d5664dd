"""The door of extraction: tokens of one model in, its logprobs store out.

`prepare` gives the work that is left: shards, each scored by a `ScoringWorker`. `cluster.extraction` does the works of all
models side by side.
"""

from functools import partial

import numpy as np

from fusechat.config import ClusterSection, ExtractionSection, ModelSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.errors import ConfigError
from fusechat.models.model_limits import position_limit
from fusechat.models.resolved_model import ResolvedModel
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.damage import check_finished
from fusechat.storage.retry import retried
from fusechat.storage.row_store import RowStore
from fusechat.storage.store_work import store_work
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import Needs, UnitLog, Work, done_before
from fusechat.text.recipes import positions_behind

from .engine.engine_settings import engine_settings
from .scoring_worker import ScoringInputs, ScoringWorker


def prepare(layout: RunLayout, model: ResolvedModel, section: ExtractionSection, cluster: ClusterSection) -> list[Work]:
    """Claim one model's store; give what is left of it as one work.

    Raises:
        ConfigError, ArtifactError: as `claim_store`.
    """
    name = model.name
    claim, store = claim_store(layout, model, section)
    if claim.artifact is not None:
        return [done_before(name, claim.artifact)]
    needs = Needs(engine_ranks=model.section.engine.tensor_parallel_size, units_in_flight=cluster.units_in_flight)
    return [
        store_work(
            name, store, partial(ScoringWorker, scoring_inputs(layout, model, section, cluster)),
            lambda: retried(partial(finish, claim, store), seconds=cluster.storage_patience_seconds),
            needs=needs, log=UnitLog(layout.log_path(f"extract.{name}"), name),
        )
    ]  # fmt: skip


def scoring_inputs(
    layout: RunLayout, model: ResolvedModel, section: ExtractionSection, cluster: ClusterSection
) -> ScoringInputs:
    """What the workers of one model are told."""
    return ScoringInputs(
        model=model.section,
        tokens_url=layout.tokens_url(model.name),
        store_url=layout.logprobs_url(model.name),
        k=section.k,
        capture=section.capture,
        self_check_dialogues=section.self_check_dialogues,
        storage_patience_seconds=cluster.storage_patience_seconds,
    )


def claim_store(layout: RunLayout, model: ResolvedModel, section: ExtractionSection) -> tuple[Claim, RowStore]:
    """Claim one model's logprobs folder and open its store, making it if need be; one process does this.

    Raises:
        ConfigError: k is larger than the vocabulary, or a dialogue longer than the model reads.
        ArtifactError: another recipe's work stands there, or the store was finished and is damaged.
    """
    name = model.name
    tokens_artifact = artifact.load(layout.tokens_url(name), "tokens")
    tokens = TokensReader(layout.tokens_url(name))
    vocab_size = int(tokens.attributes["vocab_size"])
    if section.k > vocab_size:
        raise ConfigError(f"extraction.k is {section.k}, the vocabulary of {name} has {vocab_size}; lower k")
    longest = tokens.longest()
    limit = position_limit(model.folder)
    behind = positions_behind(section.capture)
    if limit and longest + behind > limit:
        raise ConfigError(
            f"{name}: its longest dialogue has {longest:,} tokens, the model reads {limit - behind:,}"
            f"{' beside the token that prompt_logprobs samples' if behind else ''}; lower dialogues.max_tokens"
        )
    settings, url = recipe(model.section, section).with_files(digests=model.digests), layout.logprobs_url(name)
    parents = {"tokens": tokens_artifact}
    claim = artifact.claim(url, "logprobs", settings=settings, parents=parents, if_changed=layout.if_changed)
    store = RowStore.create(
        url, "logprobs", tokens.layout(section.shard_tokens), k=section.k, vocab_size=vocab_size,
        logprob_step=section.logprob_step, settings={**settings, "tokens": tokens_artifact.fingerprint},
    )  # fmt: skip
    if claim.artifact is not None:
        check_finished(store)
    return claim, store


def finish(claim: Claim, store: RowStore) -> Artifact:
    """Write the record of a store that has all its shards.

    Raises:
        ArtifactError: a commit mark is damaged.
    """
    total, num_scored = 0.0, 0
    for shard in range(store.layout.num_shards):
        labels = store.label_logprobs(shard)
        scored = labels[np.isfinite(labels)]
        total, num_scored = total + float(scored.sum(dtype=np.float64)), num_scored + len(scored)
    return claim.finish(
        {
            "shards": store.layout.num_shards,
            "dialogues": store.layout.num_dialogues,
            "rows": store.layout.num_rows,
            "rows_without_score": store.layout.num_rows - num_scored,
            "mean_label_logprob": round(total / num_scored, 6) if num_scored else None,
            "bytes": store.num_bytes(),
        }
    )


def recipe(model: ModelSection, section: ExtractionSection) -> Recipe:
    """All that decides the rows beside the model's files: where one of these differs, rows must not be mixed."""
    settings = {
        "model": model.model,
        "revision": model.revision,
        **engine_settings(model.engine),
        "capture": section.capture,
        "k": section.k,
        "logprob_step": section.logprob_step,
        "shard_tokens": section.shard_tokens,
    }
    return Recipe(settings, {"tokens": f"tokens/{model.name}"})
