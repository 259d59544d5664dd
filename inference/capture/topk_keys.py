"""Values and ids as one sortable integer: descending value, then ascending id, is descending key.

The order of every top-k here, on CPUs, on GPUs and between ranks.
"""

import torch
from torch import Tensor

LOW_BITS = 2**31 - 1


def keys_of(values: Tensor, ids: Tensor) -> Tensor:
    """float32 values and int64 ids -> int64 keys; a larger key is a larger value or, of equal values, a smaller id."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 and 0.0 one value
    ordered = bits ^ ((bits >> 31) & LOW_BITS)
    return (ordered.long() << 32) + (LOW_BITS - ids)


def split_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The values and ids of `keys_of`."""
    ids = LOW_BITS - (keys & 0xFFFFFFFF)
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & LOW_BITS)).view(torch.float32), ids
