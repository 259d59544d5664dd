"""The door of held-out scoring: a measured model and the held-out tokens in; its rows, and its logprobs of teachers' ids, out.

`prepare` gives the work that is left of one model: shards of its store, then dialogues whose teachers' ids it has not scored. One engine
does all of it. `cluster.answering` does the works of all models side by side.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fusechat.config import ModelSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe
from fusechat.errors import ConfigError
from fusechat.models.measured_models import MeasuredModel, count_parameters, opened_section
from fusechat.progress import read_json_lines
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.chosen_rows import ChosenRows
from fusechat.storage.damage import check_finished
from fusechat.storage.files import read_json
from fusechat.storage.retry import retried
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import Needs, UnitLog, Work

from ..measuring import MeasuringSettings
from ..scoring_worker import ScoringInputs
from .teacher_rows import by_dialogues
from .teachers import TeacherSample
from .worker import ENGINE_FILE, HeldOutInputs, HeldOutWorker


def prepare(
    layout: RunLayout,
    model: MeasuredModel,
    reader: ModelSection,
    settings: MeasuringSettings,
    teachers: Sequence[TeacherSample] = (),
    *,
    seed: int,
) -> list[Work]:
    """Claim a model's folders; give what is left of them.

    Args:
        reader: the model of the run whose tokenizer, template and engine it is read with.
        teachers: whose ids it scores.
        seed: drew their dialogues.
    Raises:
        ArtifactError: another recipe's work stands in a folder, or the held-out tokens are not finished.
        ConfigError: k is larger than the vocabulary.
    """
    claimed, store = claim_store(layout, model, reader, settings)
    num_shards = store.layout.num_shards if store else 0
    missing = store.missing_shards() if store and claimed.artifact is None else []
    claims = [claim_chosen(layout, model, reader, settings, teacher, seed=seed) for teacher in teachers]
    finished = {claim.url for claim in claims if claim.artifact is not None}
    groups = by_dialogues([teacher.for_model(layout, model.id) for teacher in teachers])
    told = tuple(
        tuple(one for one in group if one.out_url not in finished and not ChosenRows.is_written(one.out_url))
        for group in groups
    )
    missing += [num_shards + number for number, group in enumerate(told) if group]
    inputs = HeldOutInputs(_scoring_inputs(layout, model, reader, settings), num_shards, told)
    log = layout.log_path(f"held_out.{model.id}")

    def finish_all() -> list[Artifact]:
        patience = settings.cluster.storage_patience_seconds
        made = claimed.artifact or retried(partial(finish_store, claimed, store, model, log), seconds=patience)
        return [made, *(claim.artifact or finish_chosen(claim) for claim in claims)]

    total = num_shards + len(told)
    return [
        Work(
            name=f"{model.label} held out",
            missing=missing,
            num_units=total,
            total=total,
            done=total - len(missing),
            measure="units",
            make_worker=partial(HeldOutWorker, inputs),
            finish=finish_all,
            needs=Needs(engine_ranks=reader.engine.tensor_parallel_size),
            listener=UnitLog(log, model.id),
        )
    ]


def claim_store(
    layout: RunLayout, model: MeasuredModel, reader: ModelSection, settings: MeasuringSettings
) -> tuple[Claim, RowStore | None]:
    """Claim the model's rows on the held-out dialogues and open their store; None where nothing was held out."""
    tokens_artifact = artifact.load(layout.tokens_url(reader.name, "held_out"), "tokens")
    tokens, section = TokensReader(tokens_artifact.url), settings.extraction
    shards = tokens.layout(section.shard_tokens)
    vocab_size, url = int(tokens.attributes["vocab_size"]), layout.held_out_url(model.id)
    if section.k > vocab_size:
        raise ConfigError(f"extraction.k is {section.k}, the vocabulary of {reader.name} has {vocab_size}; lower k")
    parents = {"tokens": tokens_artifact, **({} if model.artifact is None else {"model": model.artifact})}
    recipe = {**rows_recipe(reader, settings).settings, "model": model.fingerprint}
    claim = artifact.claim(url, "logprobs", settings=recipe, parents=parents, if_changed=layout.if_changed)
    if not shards.num_rows:
        return claim, None
    store = RowStore.create(
        url, "logprobs", shards, k=section.k, vocab_size=vocab_size, logprob_step=section.logprob_step,
        settings={**recipe, "tokens": tokens_artifact.fingerprint},
    )  # fmt: skip
    if claim.artifact is not None:
        check_finished(store)
    return claim, store


def claim_chosen(
    layout: RunLayout,
    model: MeasuredModel,
    reader: ModelSection,
    settings: MeasuringSettings,
    teacher: TeacherSample,
    *,
    seed: int,
) -> Claim:
    """Claim the folder of a model's logprobs of one teacher's ids."""
    made_by = chosen_recipe(reader, settings, teacher.rows.url, teacher.split, seed=seed)
    parents = {"rows": teacher.rows}
    if model.artifact is not None:
        parents["model"] = model.artifact
    return artifact.claim(
        layout.chosen_url(model.id, teacher.split, teacher.name), "chosen",
        settings={**made_by.settings, "dialogues": list(teacher.dialogues), "model": model.fingerprint}, parents=parents,
        if_changed=layout.if_changed,
    )  # fmt: skip


def rows_recipe(reader: ModelSection, settings: MeasuringSettings) -> Recipe:
    """What decides a model's rows on the held-out dialogues, beside the model."""
    section = settings.extraction
    rows = {"k": section.k, "logprob_step": section.logprob_step, "shard_tokens": section.shard_tokens}
    return Recipe({**settings.recipe(reader), **rows}, {"tokens": f"tokens/{reader.name}.held_out"})


def chosen_recipe(reader: ModelSection, settings: MeasuringSettings, rows: str, split: str, *, seed: int) -> Recipe:
    """What decides a model's logprobs of a teacher's ids, beside the model.

    Args:
        rows: key of the teacher's rows.
        seed: draws the dialogues.
    """
    drawn = {"split": split, "seed": seed, "drawn": settings.held_out.divergence_dialogues}
    return Recipe({**settings.recipe(reader), **drawn}, {"rows": rows})


def finish_store(claim: Claim, store: RowStore | None, model: MeasuredModel, log: Path) -> Artifact:
    """Write the record of a store that has all its shards, or of none, where nothing was held out."""
    if store is None:
        empty = {"shards": 0, "dialogues": 0, "rows": 0, "rows_without_score": 0, "engine": None, "engine_seconds": 0.0}
        return claim.finish({**empty, "parameters": count_parameters(model.folder)})
    shards = range(store.layout.num_shards)
    without_score = sum(int((~np.isfinite(store.label_logprobs(shard))).sum()) for shard in shards)
    done = [
        line for line in read_json_lines(log) if line["event"] == "done" and line["shard"] < store.layout.num_shards
    ]
    last = {line["shard"]: line["seconds"] for line in done}
    return claim.finish(
        {
            "shards": store.layout.num_shards,
            "dialogues": store.layout.num_dialogues,
            "rows": store.layout.num_rows,
            "rows_without_score": without_score,
            "parameters": count_parameters(model.folder),
            "engine": read_json(f"{store.url}/{ENGINE_FILE}"),
            "engine_seconds": round(sum(last.values()), 3),
            "bytes": store.num_bytes(),
        }
    )


def finish_chosen(claim: Claim) -> Artifact:
    """Write the record of chosen rows that are all there."""
    made = ChosenRows.read(claim.url)
    return claim.finish({"dialogues": len(made.dialogues), "rows": len(made.rest_logprob)})


def _scoring_inputs(
    layout: RunLayout, model: MeasuredModel, reader: ModelSection, settings: MeasuringSettings
) -> ScoringInputs:
    return ScoringInputs(
        model=opened_section(model, settings.engine_of(reader)),
        tokens_url=layout.tokens_url(reader.name, "held_out"),
        store_url=layout.held_out_url(model.id),
        k=settings.extraction.k,
        capture=settings.extraction.capture,
        # Its architecture was checked where its pivot was extracted, and a check reads the model a second time.
        self_check_dialogues=0,
        storage_patience_seconds=settings.cluster.storage_patience_seconds,
        is_wide_on_cpus=settings.held_out.dtype == "auto",
    )
