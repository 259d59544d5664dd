"""Opens a store of rows, and refuses one that was not made from the pivot's tokens of this run."""

import numpy as np

from fusechat.errors import ArtifactError
from fusechat.storage.artifact import Artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens


def open_rows(rows: Artifact, made_from: Artifact, tokens: Tokens) -> RowStore:
    """The store of an artifact of rows on the pivot's tokens.

    Raises:
        ArtifactError: it was made from other tokens, is of another vocabulary or has other rows.
    """
    url, store = rows.url, RowStore.open(rows.url, rows.kind)
    if made_from.fingerprint not in rows.record["parents"].values():
        raise ArtifactError(
            f"{url}: was made from other tokens than {made_from.url} "
            f"({rows.record['parents']}, expected {made_from.fingerprint}); run the stages before training again"
        )
    if store.attributes["vocab_size"] != tokens.attributes["vocab_size"]:
        raise ArtifactError(
            f"{url}: its ids are of a vocabulary of {store.attributes['vocab_size']}, the pivot's has "
            f"{tokens.attributes['vocab_size']}; run the stages before training again"
        )
    if not np.array_equal(store.layout.row_offsets, tokens.row_offsets):
        raise ArtifactError(f"{url}: its rows are not those of {made_from.url}; run the stages before training again")
    return store
