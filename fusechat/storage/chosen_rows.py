"""What a model says of the ids of a teacher's rows: logprobs of chosen ids on some dialogues, as one small artifact."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from ..errors import ArtifactError
from .contracts import CHOSEN, CONTRACT_VERSION
from .write_errors import storage_errors
from .zarr_arrays import ATTRIBUTE, DAMAGE, read_array, write_array


@dataclass(frozen=True)
class ChosenRows:
    """`dialogues` int64 [sampled], numbers in the split; `offsets` int64 [sampled+1], first row of each.

    `chosen_logprobs` float32 [rows, k] of the ids of the teacher's rows, -inf where a row is padded; `rest_logprob` float32
    [rows], of all other ids together.
    """

    dialogues: np.ndarray
    offsets: np.ndarray
    chosen_logprobs: np.ndarray
    rest_logprob: np.ndarray

    @classmethod
    def read(cls, url: str) -> "ChosenRows":
        """Read an artifact.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        try:
            with storage_errors(url):
                group = zarr.open_group(store=url, mode="r")
                arrays = {name: read_array(group, name) for name in CHOSEN.names}
        except FileNotFoundError:
            raise ArtifactError(f"{url}: found no chosen rows; run `fusechat answer` first") from None
        except DAMAGE as error:
            raise ArtifactError(f"{url}: damaged ({error}); delete this folder and run `fusechat answer`") from None
        CHOSEN.validate(arrays, axes={"sampled+1": len(arrays["dialogues"]) + 1}, place=url)
        return cls(**arrays)

    def write(self, url: str) -> None:
        """Write the artifact's arrays; the group's attributes come last and say that all are there."""
        arrays = {name: getattr(self, name) for name in CHOSEN.names}
        CHOSEN.validate(arrays, axes={"sampled+1": len(self.dialogues) + 1}, place=url)
        with storage_errors(url):
            group = zarr.open_group(store=url, mode="a")
            for name, values in arrays.items():
                write_array(group, name, values, fill_value=CHOSEN.spec(name).fill_value)
            group.attrs[ATTRIBUTE] = {"contract_version": CONTRACT_VERSION, "artifact": "chosen"}

    @staticmethod
    def is_written(url: str) -> bool:
        """Whether all arrays are there."""
        try:
            with storage_errors(url):
                attributes: Any = zarr.open_group(store=url, mode="r").attrs.get(ATTRIBUTE)
        except (FileNotFoundError, *DAMAGE):
            return False
        return isinstance(attributes, dict) and attributes.get("contract_version") == CONTRACT_VERSION
