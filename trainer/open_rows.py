"""Opens a store of rows, and refuses one that was not made from the pivot's tokens of this run."""

import numpy as np

from fusechat.errors import ArtifactError
from fusechat.storage.artifact import Artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.zarr_arrays import ranges


def open_rows(rows: Artifact, made_from: Artifact, tokens: TokensReader) -> RowStore:
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
    same_number = store.layout.num_dialogues == tokens.num_dialogues
    if not same_number or not all(
        np.array_equal(store.row_offsets_of(part), tokens.row_offsets_of(part)) for part in ranges(tokens.num_dialogues)
    ):
        raise ArtifactError(f"{url}: its rows are not those of {made_from.url}; run the stages before training again")
    return store
