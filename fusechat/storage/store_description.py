"""The description of a row store: everything but the shards. A layout in; the store's own documents and offsets out.

`shard_offsets`, `shard_rows` and the attributes are read whole, `row_offsets` by range.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..errors import ArtifactError
from .artifact import differences
from .contracts import Contract
from .files import write_bytes
from .row_arrays import create_row_array
from .shard_layout import ShardLayout
from .zarr_arrays import ATTRIBUTE, LongWriter, create_long_array, ranges, write_array


def write_description(url: str, contract: Contract, layout: ShardLayout, attributes: dict[str, Any]) -> None:
    """Write a description, in place of a damaged one; shards that are there stay."""
    with tempfile.TemporaryDirectory() as folder:
        group = zarr.open_group(store=folder, mode="w", attributes={ATTRIBUTE: attributes})
        write_array(group, "shard_offsets", layout.shard_offsets)
        write_array(group, "shard_rows", layout.shard_rows)
        num_offsets = layout.num_dialogues + 1
        with LongWriter(create_long_array(group, "row_offsets", (num_offsets,), np.int64)) as offsets:
            for part in ranges(num_offsets):
                offsets.add(np.asarray(layout.row_offsets[part.start : part.stop]))
        for name in contract.names:
            create_row_array(group, contract, name, layout, attributes["k"], attributes["vocab_size"])
        # The group's own document comes last: without it the store is not there and is made again.
        files = sorted((path for path in Path(folder).rglob("*") if path.is_file()), key=_depth, reverse=True)
        for path in files:
            write_bytes(f"{url}/{path.relative_to(folder)}", path.read_bytes())


def check_shapes(layout: ShardLayout, arrays: dict[str, Any], attributes: dict[str, Any], contract: Contract) -> None:
    """Raises ValueError for arrays or offsets of other lengths than the attributes say."""
    for offsets, last in ((layout.shard_offsets, "num_dialogues"), (layout.shard_rows, "num_rows")):
        if offsets.shape != (attributes["num_shards"] + 1,) or offsets.dtype.kind not in "iu":
            raise ValueError("shard_offsets or shard_rows are of another length than num_shards")
        if offsets[0] != 0 or offsets[-1] != attributes[last] or (np.diff(offsets) < 0).any():
            raise ValueError(f"shard_offsets or shard_rows do not rise from 0 to {last}")
    rows = layout.row_offsets
    if rows.shape != (layout.num_dialogues + 1,) or rows.dtype.kind not in "iu":
        raise ValueError("row_offsets are of another length than num_dialogues")
    if (int(rows[0]), int(rows[-1])) != (0, layout.num_rows):
        raise ValueError("row_offsets do not rise from 0 to num_rows")
    reserved = layout.num_shards * layout.capacity
    for name, array in arrays.items():
        expected = (reserved, int(attributes["k"])) if "k" in contract.spec(name).axes else (reserved,)
        if array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}, the layout says {expected}")


def refuse_other_recipe(
    url: str, attributes: dict[str, Any], layout: ShardLayout, wanted: dict[str, Any], wanted_layout: ShardLayout
) -> None:
    """Raises ArtifactError where a store's attributes or layout are not the wanted ones; the message shows the difference."""
    lines = differences(attributes, wanted)
    if not _same_offsets(layout, wanted_layout):
        lines.append("row_offsets: the dialogues or their target tokens differ")
    if not np.array_equal(layout.shard_offsets, wanted_layout.shard_offsets):
        lines.append("shard_offsets: the dialogues are cut into other shards")
    if lines:
        raise ArtifactError(
            f"{url}: holds a store of another recipe:\n  " + "\n  ".join(lines)
            + "\nUse another run.output, or --set run.if_changed=restart to delete it and everything made from it."
        )  # fmt: skip


def no_description(url: str, error: Exception) -> ArtifactError:
    """The error that says how a damaged description is mended."""
    return ArtifactError(
        f"{url}: the store's description cannot be read ({error}); run the stage that writes it: it makes the description "
        "anew and keeps the shards"
    )


def _same_offsets(one: ShardLayout, other: ShardLayout) -> bool:
    return one.num_dialogues == other.num_dialogues and all(
        np.array_equal(one.row_offsets[part.start : part.stop], other.row_offsets[part.start : part.stop])
        for part in ranges(one.num_dialogues + 1)
    )


def _depth(path: Path) -> int:
    return len(path.parts)
