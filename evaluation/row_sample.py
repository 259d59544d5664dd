"""Which stored rows the models are compared with: a run in; training dialogues and the teachers' rows on them out.

Held-out dialogues are not extracted, so no teacher has rows there; a stated sample of the training dialogues needs no
teacher to run again. Knows nothing about networks.
"""

from dataclasses import dataclass

import numpy as np

from fusechat.config import RunConfig
from fusechat.errors import ArtifactError
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens


@dataclass(frozen=True)
class RowSample:
    """`dialogues` int64 [sampled], numbers of training dialogues; `stores`: teacher -> its rows on the pivot's tokens."""

    tokens: Tokens
    dialogues: np.ndarray
    stores: dict[str, RowStore]
    artifacts: dict[str, Artifact]
    """Parents of the figures: the pivot's training tokens and the rows of each teacher."""
    missing: tuple[str, ...]
    """Teachers whose rows are not finished."""

    @property
    def key(self) -> dict[str, object]:
        """What decides the figures beside the model."""
        prints = {role: found.fingerprint for role, found in self.artifacts.items()}
        return {"rows": prints, "dialogues": self.dialogues.tolist()}

    @property
    def num_tokens(self) -> int:
        """Tokens that each model reads for it."""
        return int(self.tokens.lengths[self.dialogues].sum()) if self.stores else 0


def row_sample(config: RunConfig) -> RowSample | None:
    """The sample that a run asks for; None if it asks for none.

    Raises:
        ArtifactError: rows that were not made from the pivot's tokens of this run.
    """
    wanted = config.evaluation.held_out.divergence_dialogues
    if not wanted:
        return None
    pivot = config.pivot.name
    made = artifact.load(config.tokens_url(pivot), "tokens")
    places = {pivot: (config.logprobs_url(pivot), "logprobs")}
    places |= {source.name: (config.aligned_url(source.name), "aligned") for source in config.sources}
    tokens, stores, artifacts, missing = Tokens.read(made.url), {}, {f"train tokens {pivot}": made}, []
    for name, (url, kind) in places.items():
        if artifact.read_json(f"{url}/{artifact.RECORD_FILE}") is None:
            missing.append(name)
            continue
        found = artifact.load(url, kind)
        if made.fingerprint not in found.record["parents"].values():
            raise ArtifactError(
                f"{url}: was made from other tokens than {made.url}; run the stages before evaluation again, or set "
                "evaluation.held_out.divergence_dialogues: 0"
            )
        stores[name], artifacts[f"{kind} {name}"] = RowStore.open(url, kind), found
    readable = np.flatnonzero(np.diff(tokens.row_offsets) > 0)
    drawn = np.random.default_rng(config.run.seed).permutation(readable)[:wanted]
    return RowSample(tokens, np.sort(drawn), stores, artifacts, tuple(missing))
