"""Row stores: top-k rows in a Zarr v3 group that any Zarr reader opens, written shard by shard.

A shard is a run of whole dialogues, balanced by token count; it owns one Zarr shard in every array, so no two writers
ever meet in one object. `label_logprob` is written last: its object is the shard's commit mark, and resumption reads
nothing else. Group attributes carry the layout; a store that another recipe made is refused. Zarr reads a missing object as
fill; here it is damage, and so is one that fails its checksum (`damage.py` finds and repairs it).

On disk (core codecs only: transpose, blosc, zstd, bytes, crc32c, sharding):
- `topk_ids`: as declared;
- `topk_logprobs`: uint16 on a grid of `logprob_step` nats: entry 0 holds the tail's logit, entry j the distance of logprob j
  to logprob j-1; 65535 pads. The tail fixes the row's level, so rounding neither lifts its mass above 1 nor loses a small tail;
- `label_logprob`: float32 rounded to 1/1024 nat, which lets the low bits compress away.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import zarr

from ..errors import ArtifactError, StorageError
from .artifact import LEASE_FILE
from .contracts import CONTRACT_VERSION, CONTRACTS, Contract
from .files import delete, folder_bytes, has_bytes, listing
from .row_arrays import COMMIT_ARRAY, LABEL_STEP, decode_rows, encode_rows
from .shard_layout import ShardLayout
from .store_description import check_shapes, no_description, refuse_other_recipe, write_description
from .write_errors import storage_errors
from .zarr_arrays import ATTRIBUTE, DAMAGE, LongArray, read_array, writable


class RowStore:
    """A logprobs or aligned store."""

    def __init__(self, url: str, group: zarr.Group, contract: Contract) -> None:
        self.url, self.contract, self._group = url, contract, group
        self.attributes: dict[str, Any] = dict(group.attrs[ATTRIBUTE])  # type: ignore[arg-type]  # an object, as `open` has checked
        self.layout = ShardLayout(
            read_array(group, "shard_offsets"), read_array(group, "shard_rows"), LongArray(url, group, "row_offsets")
        )
        self.k = int(self.attributes["k"])
        self.logprob_step = float(self.attributes["logprob_step"])
        self._arrays: dict[str, zarr.Array[Any]] = {name: writable(group, name) for name in contract.names}
        check_shapes(self.layout, self._arrays, self.attributes, contract)
        self._seen: set[tuple[str, int]] = set()
        """(array, shard) of the objects that are known to be there."""

    @classmethod
    def create(
        cls,
        url: str,
        artifact: str,
        layout: ShardLayout,
        *,
        k: int,
        vocab_size: int,
        logprob_step: float,
        settings: dict[str, Any],
    ) -> "RowStore":
        """Open the store of this layout, making it if it is not there. One process does this before any writer starts.

        A store whose description (everything but the shards) is damaged gets a new one and keeps its shards: that they
        are this layout's is the business of `artifact.claim`.

        Args:
            artifact: `logprobs` or `aligned`.
            vocab_size: of the ids' vocabulary; decides their dtype.
            settings: whatever else decides the content (plain JSON values).
        Raises:
            ArtifactError: the store there was made by another recipe; the message shows the difference.
        """
        contract = CONTRACTS[artifact]
        attributes = {
            "contract_version": CONTRACT_VERSION,
            "artifact": artifact,
            "k": k,
            "vocab_size": vocab_size,
            "logprob_step": logprob_step,
            "label_step": LABEL_STEP,
            "num_shards": layout.num_shards,
            "num_dialogues": layout.num_dialogues,
            "num_rows": layout.num_rows,
            "settings": settings,
        }
        with storage_errors(url):
            with contextlib.suppress(FileNotFoundError, *DAMAGE):
                existing = cls(url, zarr.open_group(store=url, mode="r+"), contract)
                refuse_other_recipe(existing.url, existing.attributes, existing.layout, attributes, layout)
                return existing
            write_description(url, contract, layout, attributes)
            return cls(url, zarr.open_group(store=url, mode="r+"), contract)

    @classmethod
    def open(cls, url: str, artifact: str, *, mode: Literal["r", "r+"] = "r") -> "RowStore":
        """Open an existing store; mode `r` or `r+`.

        Raises:
            ArtifactError: there is no such store, it holds another artifact, or its description is damaged.
        """
        try:
            group = zarr.open_group(store=url, mode=mode)
            attributes: Any = group.attrs[ATTRIBUTE]
        except (FileNotFoundError, KeyError):
            raise ArtifactError(f"{url}: found no {artifact} store; run the stage that writes it first") from None
        except DAMAGE as error:
            raise no_description(url, error) from None
        if not isinstance(attributes, dict):
            raise no_description(url, TypeError(f"its attributes are {type(attributes).__name__}"))
        if attributes.get("artifact") != artifact:
            raise ArtifactError(f"{url}: found a store of {str(attributes.get('artifact'))[:80]}, expected {artifact}")
        if attributes.get("contract_version") != CONTRACT_VERSION:
            version = str(attributes.get("contract_version"))[:80]
            raise ArtifactError(f"{url}: found contract version {version}, expected {CONTRACT_VERSION}; extract afresh")
        try:
            return cls(url, group, CONTRACTS[artifact])
        except DAMAGE as error:
            raise no_description(url, error) from None

    def present_shards(self) -> set[int]:
        """Shards whose commit mark is there and not empty (as a crash of the machine leaves it); one listing of the store."""
        marks = listing(f"{self.url}/{COMMIT_ARRAY}/c")
        return {int(name) for name, num_bytes in marks.items() if num_bytes and name.isdigit()}

    def missing_shards(self) -> list[int]:
        """Shards that are still to be written, in order."""
        present = self.present_shards()
        return [shard for shard in range(self.layout.num_shards) if shard not in present]

    def write_shard(self, shard: int, arrays: dict[str, np.ndarray]) -> None:
        """Write the rows of one shard; the commit mark goes last. Writing the same shard again writes the same bytes.

        Args:
            arrays: the contract's arrays for exactly the rows of the shard, in order.
        Raises:
            ContractError: arrays that do not obey the contract.
            StorageError: the target is full or read-only.
        """
        rows = self.layout.rows(shard)
        self.contract.validate(
            arrays, axes={"rows": rows.stop - rows.start, "k": self.k}, place=f"{self.url}, shard {shard}"
        )
        names = [name for name in self.contract.names if name != COMMIT_ARRAY] + [COMMIT_ARRAY]
        with storage_errors(self.url):
            for name in names:
                encoded = encode_rows(name, arrays[name], self.logprob_step, self._arrays[name].dtype)
                padded = np.full(
                    (self.layout.capacity, *encoded.shape[1:]), self._arrays[name].fill_value, encoded.dtype
                )
                padded[: len(encoded)] = encoded
                self._write_array(name, shard, padded)

    def _write_array(self, name: str, shard: int, values: np.ndarray) -> None:
        start = shard * self.layout.capacity
        block = slice(start, start + self.layout.capacity)
        try:
            self._arrays[name][block] = values
        except (ValueError, RuntimeError):  # Zarr decodes what stands there before it writes over it: damage stops it
            delete(self.object_url(name, shard))
            self._arrays[name][block] = values

    def read_shard(self, shard: int) -> dict[str, np.ndarray]:
        """The contract's arrays for the rows of one shard.

        Raises:
            ArtifactError: the shard is not written or damaged; so do the other reading methods.
        """
        return self._read_block(shard, self._disk_rows(shard))

    def read_dialogue(self, dialogue: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """The contract's arrays for the rows of one dialogue.

        Args:
            rows: where they stand, counted without padding; default: looked up.
        """
        shard = self.layout.shard_of(dialogue)
        if rows is None:
            rows = slice(*self.row_offsets_of(range(dialogue, dialogue + 1)).tolist())
        first, last = rows.start, rows.stop
        start = shard * self.layout.capacity + first - self.layout.rows(shard).start
        return self._read_block(shard, slice(start, start + last - first))

    def row_offsets_of(self, dialogues: range) -> np.ndarray:
        """int64 [dialogues+1]: first row of each of consecutive dialogues, and of the one after them."""
        try:
            with storage_errors(self.url):
                offsets: np.ndarray = self.layout.row_offsets[dialogues.start : dialogues.stop + 1]
            first, last = self.layout.shard_of(dialogues.start), self.layout.shard_of(max(dialogues.stop - 1, 0))
            if (np.diff(offsets, prepend=self.layout.rows(first).start, append=self.layout.rows(last).stop) < 0).any():
                raise ValueError("row_offsets are not within their shards")
        except DAMAGE as error:
            raise no_description(self.url, error) from None
        return offsets

    def iter_shards(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """All shards in order, one in memory at a time."""
        for shard in range(self.layout.num_shards):
            yield shard, self.read_shard(shard)

    def label_logprobs(self, shard: int) -> np.ndarray:
        """float32 [rows]: the label logprobs of one shard, without padding."""
        return self.read_array(COMMIT_ARRAY, shard, self._disk_rows(shard))

    def read_array(self, name: str, shard: int, rows: slice | None = None) -> np.ndarray:
        """One array of one shard as it lies on disk.

        Args:
            rows: on disk, within the shard; default: all it reserves.
        Raises:
            ArtifactError: the object is not there, or damaged.
            StorageError: the store does not answer.
        """
        start = shard * self.layout.capacity
        rows = rows or slice(start, start + self.layout.capacity)
        try:
            with storage_errors(self.url):
                if (name, shard) not in self._seen and not has_bytes(self.object_url(name, shard)):
                    raise self._damaged(name, shard, "the object is missing or empty")
                self._seen.add((name, shard))
                return np.asarray(self._arrays[name][rows])
        except (ArtifactError, StorageError):
            raise
        except OSError as error:
            what = f"{self.url}: shard {shard}: {name}"
            raise StorageError(f"{what} cannot be read: {error}; start again later") from error
        except Exception as error:  # each codec has its own way of refusing bytes
            raise self._damaged(name, shard, str(error)) from error

    def _damaged(self, name: str, shard: int, reason: str) -> ArtifactError:
        return ArtifactError(
            f"{self.url}: shard {shard}: {name} is damaged or missing ({reason}); run `fusechat inspect {self.url} "
            "--repair`, then the stage that writes it: it makes only this shard again"
        )

    def object_url(self, name: str, shard: int) -> str:
        """Path or URL of the object that holds one array's rows of one shard."""
        array = self._arrays[name]
        return f"{self.url}/{name}/{array.metadata.encode_chunk_key((shard,) + (0,) * (array.ndim - 1))}"

    def num_bytes(self) -> int:
        """Bytes of all objects, without the lease of whoever is writing."""
        return folder_bytes(self.url, LEASE_FILE)

    def _disk_rows(self, shard: int) -> slice:
        rows, start = self.layout.rows(shard), shard * self.layout.capacity
        return slice(start, start + rows.stop - rows.start)

    def _read_block(self, shard: int, block: slice) -> dict[str, np.ndarray]:
        arrays = {name: self.read_array(name, shard, block) for name in self.contract.names}
        return {name: decode_rows(name, values, self.logprob_step) for name, values in arrays.items()}
