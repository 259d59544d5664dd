"""Row stores: top-k rows in a Zarr v3 group that any Zarr reader opens, written shard by shard.

A shard is a run of whole dialogues, balanced by token count; it owns one Zarr shard in every array, so no two writers
ever meet in one object. `label_logprob` is written last: its object is the shard's commit mark, and resumption reads
nothing else. Group attributes carry the layout; a store that another recipe made is refused. Zarr reads a missing object as
fill; here it is damage, and so is one that fails its checksum (`damage.py` finds and repairs it).

On disk (core codecs only: transpose, blosc, zstd, bytes, crc32c, sharding):
- `topk_ids`: as declared;
- `topk_logprobs`: uint16 on a grid of `logprob_step` nats: entry 0 holds the tail's logit, entry j the distance of
  logprob j to logprob j-1; 65535 marks padding. The tail fixes the level of the row, so that rounding can neither lift
  its mass above 1 nor swallow a small tail;
- `label_logprob`: float32 rounded to 1/1024 nat, which lets the low bits compress away.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from ..errors import ArtifactError, StorageError
from .artifact import LEASE_FILE, delete, differences, storage_errors, write_bytes
from .contracts import CONTRACT_VERSION, CONTRACTS, Contract, id_dtype
from .row_codec import GAP_PADDING, decode_gaps, encode_gaps
from .shard_layout import ShardLayout

LABEL_STEP = 1 / 1024
"""Grid of the label logprobs, nats."""
DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    RuntimeError,
)
"""What Zarr and numpy raise where a description is not what it should be: they check little of it beforehand."""
COMMIT_ARRAY = "label_logprob"
ATTRIBUTE = "fusechat"


class RowStore:
    """A logprobs or aligned store."""

    def __init__(self, url: str, group: zarr.Group, contract: Contract) -> None:
        self.url, self.contract, self._group = url, contract, group
        self.attributes: dict[str, Any] = dict(group.attrs[ATTRIBUTE])  # type: ignore[arg-type]  # an object, as `open` has checked
        self.layout = ShardLayout(read_array(group, "shard_offsets"), read_array(group, "row_offsets"))
        self.k = int(self.attributes["k"])
        self.logprob_step = float(self.attributes["logprob_step"])
        self._arrays: dict[str, zarr.Array[Any]] = {name: group[name] for name in contract.names}  # type: ignore[misc]  # no groups
        if (self.layout.num_shards, self.layout.num_rows) != (
            self.attributes["num_shards"],
            self.attributes["num_rows"],
        ):
            raise ValueError("shard_offsets or row_offsets are missing")
        self._check_shapes()
        self._seen: set[tuple[str, int]] = set()
        """(array, shard) of the objects that are known to be there."""

    def _check_shapes(self) -> None:
        """Raises ValueError for arrays or offsets of other lengths than the layout says."""
        for offsets, last in ((self.layout.row_offsets, None), (self.layout.shard_offsets, self.layout.num_dialogues)):
            if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or offsets[0] != 0 or (np.diff(offsets) < 0).any():
                raise ValueError("shard_offsets or row_offsets do not rise from 0")
            if last is not None and offsets[-1] != last:
                raise ValueError("shard_offsets do not end with the last dialogue")
        for name, array in self._arrays.items():
            rows = self.layout.num_shards * self.layout.capacity
            expected = (rows, self.k) if "k" in self.contract.spec(name).axes else (rows,)
            if array.shape != expected:
                raise ValueError(f"{name} has shape {array.shape}, the layout says {expected}")

    @property
    def settings(self) -> dict[str, Any]:
        """What was given to `create`: model, digests, capture and so on."""
        settings: dict[str, Any] = self.attributes["settings"]
        return settings

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
                _refuse_other_recipe(existing, attributes, layout)
                return existing
            with tempfile.TemporaryDirectory() as folder:
                group = zarr.open_group(store=folder, mode="w", attributes={ATTRIBUTE: attributes})  # type: ignore[dict-item]  # JSON
                write_array(group, "shard_offsets", layout.shard_offsets)
                write_array(group, "row_offsets", layout.row_offsets)
                for name in contract.names:
                    _create_array(group, contract, name, layout, k, vocab_size)
                # The group's own document comes last: without it the store is not there and is made again.
                files = sorted((path for path in Path(folder).rglob("*") if path.is_file()), key=_depth, reverse=True)
                for path in files:
                    write_bytes(f"{url}/{path.relative_to(folder)}", path.read_bytes())
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
            raise _no_description(url, error) from None
        if not isinstance(attributes, dict):
            raise _no_description(url, TypeError(f"its attributes are {type(attributes).__name__}"))
        if attributes.get("artifact") != artifact:
            raise ArtifactError(f"{url}: found a store of {str(attributes.get('artifact'))[:80]}, expected {artifact}")
        if attributes.get("contract_version") != CONTRACT_VERSION:
            version = str(attributes.get("contract_version"))[:80]
            raise ArtifactError(f"{url}: found contract version {version}, expected {CONTRACT_VERSION}; extract afresh")
        try:
            return cls(url, group, CONTRACTS[artifact])
        except DAMAGE as error:
            raise _no_description(url, error) from None

    def present_shards(self) -> set[int]:
        """Shards whose commit mark is there and not empty (as a crash of the machine leaves it); one listing of the store."""
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(f"{self.url}/{COMMIT_ARRAY}/c")
        filesystem.invalidate_cache()
        try:
            with storage_errors(self.url):
                entries = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return set()
        names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["size"]]
        return {int(name) for name in names if name.isdigit()}

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
                encoded = self._encode(name, arrays[name])
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

    def read_dialogue(self, dialogue: int) -> dict[str, np.ndarray]:
        """The contract's arrays for the rows of one dialogue."""
        shard = self.layout.shard_of(dialogue)
        first, last = self.layout.row_offsets[dialogue : dialogue + 2]
        start = shard * self.layout.capacity + int(first) - self.layout.rows(shard).start
        return self._read_block(shard, slice(start, start + int(last - first)))

    def iter_shards(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """All shards in order, one in memory at a time."""
        for shard in range(self.layout.num_shards):
            yield shard, self.read_shard(shard)

    def label_logprobs(self) -> np.ndarray:
        """float32 [rows]: the label logprobs of the whole store, without padding."""
        shards = range(self.layout.num_shards)
        return np.concatenate([self.read_array(COMMIT_ARRAY, shard, self._disk_rows(shard)) for shard in shards])

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
                if (name, shard) not in self._seen and not self._is_there(name, shard):
                    raise self._damaged(name, shard, "the object is missing or empty")
                self._seen.add((name, shard))
                return np.asarray(self._arrays[name][rows])
        except (ArtifactError, StorageError):
            raise
        except OSError as error:
            raise StorageError(
                f"{self.url}: shard {shard}: {name} cannot be read: {error}; start again later"
            ) from error
        except Exception as error:  # each codec has its own way of refusing bytes
            raise self._damaged(name, shard, str(error)) from error

    def _is_there(self, name: str, shard: int) -> bool:
        """Whether an object is there and not empty; Zarr takes both for fill."""
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(self.object_url(name, shard))
        try:
            return bool(filesystem.info(path)["size"] > 0)
        except FileNotFoundError:
            return False

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
        import fsspec

        with storage_errors(self.url):
            if "://" in self.url:
                filesystem, path = fsspec.core.url_to_fs(self.url)
                sizes = filesystem.du(path, total=False)
                return sum(size for name, size in sizes.items() if not name.endswith(f"/{LEASE_FILE}"))
            total = 0
            for file in Path(self.url).rglob("*"):
                if file.suffix != ".partial" and file.name != LEASE_FILE and file.is_file():
                    total += file.stat().st_size
            return total

    def _disk_rows(self, shard: int) -> slice:
        rows, start = self.layout.rows(shard), shard * self.layout.capacity
        return slice(start, start + rows.stop - rows.start)

    def _read_block(self, shard: int, block: slice) -> dict[str, np.ndarray]:
        return {name: self._decode(name, self.read_array(name, shard, block)) for name in self.contract.names}

    def _encode(self, name: str, values: np.ndarray) -> np.ndarray:
        if name == "topk_logprobs":
            return encode_gaps(values, self.logprob_step)
        if name == "label_logprob":
            return (np.rint(values / np.float32(LABEL_STEP)) * np.float32(LABEL_STEP)).astype(np.float32)
        return values.astype(self._arrays[name].dtype, copy=False)

    def _decode(self, name: str, values: np.ndarray) -> np.ndarray:
        return decode_gaps(values, self.logprob_step) if name == "topk_logprobs" else values


def _create_array(
    group: zarr.Group, contract: Contract, name: str, layout: ShardLayout, k: int, vocab_size: int
) -> None:
    spec = contract.spec(name)
    wide = "k" in spec.axes
    capacity, chunk = layout.capacity, layout.chunk_rows
    dtype = {"topk_ids": id_dtype(vocab_size), "topk_logprobs": "uint16"}.get(name, spec.dtypes[0])
    group.create_array(
        name,
        shape=(layout.num_shards * capacity, k) if wide else (layout.num_shards * capacity,),
        dtype=dtype,
        chunks=(chunk, k) if wide else (chunk,),
        shards=(capacity, k) if wide else (capacity,),
        fill_value=GAP_PADDING if name == "topk_logprobs" else spec.fill_value,
        # Gaps of one rank resemble each other; ids compress better row by row.
        filters=[TransposeCodec(order=(1, 0))] if name == "topk_logprobs" else None,
        serializer=BytesCodec(),
        compressors=[_compressor(name), Crc32cCodec()],
        dimension_names=[str(axis) for axis in spec.axes],
        attributes={"unit": spec.unit, "meaning": spec.meaning},
        # An all-fill chunk must be written: a missing object means a missing shard.
        config={"write_empty_chunks": True},
        overwrite=True,
    )


def _compressor(name: str) -> Any:
    if name == "topk_ids":
        return ZstdCodec(level=9)
    if name == "topk_logprobs":
        return BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2)
    return BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=4 if name == COMMIT_ARRAY else 1)


def write_array(group: zarr.Group, name: str, values: np.ndarray, fill_value: Any = 0) -> None:
    """Write one small array whole, in place of what was there."""
    chunks = tuple(max(1, min(length, 1 << 20)) for length in values.shape)
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=chunks, compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=fill_value, overwrite=True, config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = values


def read_array(group: zarr.Group, name: str) -> np.ndarray:
    """Read one small array whole.

    Raises:
        ValueError: objects of it are missing, or fail their checksum.
    """
    return np.asarray(whole_array(group, name)[...])


def whole_array(group: zarr.Group, name: str) -> Any:
    """An array of which every object is there; Zarr reads a missing one as fill.

    Raises:
        ValueError: objects of it are missing.
    """
    array: Any = group[name]
    if missing := array.nchunks - array.nchunks_initialized:
        raise ValueError(f"{missing} of the {array.nchunks} objects of {name} are missing")
    return array


def _depth(path: Path) -> int:
    return len(path.parts)


def _no_description(url: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{url}: the store's description cannot be read ({error}); run the stage that writes it: it makes the description "
        "anew and keeps the shards"
    )


def _refuse_other_recipe(store: RowStore, attributes: dict[str, Any], layout: ShardLayout) -> None:
    lines = differences(store.attributes, attributes)
    if not np.array_equal(store.layout.row_offsets, layout.row_offsets):
        lines.append("row_offsets: the dialogues or their target tokens differ")
    if not np.array_equal(store.layout.shard_offsets, layout.shard_offsets):
        lines.append("shard_offsets: the dialogues are cut into other shards")
    if lines:
        raise ArtifactError(
            f"{store.url}: holds a store of another recipe:\n  " + "\n  ".join(lines)
            + "\nUse another run.output, or --set run.if_changed=restart to delete it and everything made from it."
        )  # fmt: skip
