"""What file systems, libraries and object stores say when they cannot be written or do not answer, as one clear error.

Goes in: whatever was raised while something was written or read. Comes out: a StorageError with what to do, or the same error.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import StorageAwayError, StorageError, causes

CLIENTS = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "s3fs"}
"""Packages whose errors mean that an object store was not reached, or failed."""
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EFBIG)
"""Errors of the system that mean: nothing can be written there unless somebody does something."""
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_ERROR = re.compile(r"PytorchStreamWriter|inline_container|iostream error|file write failed")
"""What `torch.save` says in a RuntimeError when not all bytes were taken; it does not say why."""


def _why_not_written(raised: BaseException) -> str | None:
    """The system's reason why a file could not be written, None for an error of another kind.

    Libraries raise errors of their own for it: safetensors names the system's error in its text, torch none at all, and
    others raise while they handle the first.
    """
    for error in causes(raised):
        named = _RUST_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
        if number in REFUSALS:
            return os.strerror(number)
        if isinstance(error, PermissionError):
            return str(error)
        if isinstance(error, RuntimeError) and _TORCH_ERROR.search(str(error)):
            return "the file was not taken whole, as on a full disk"
        if not isinstance(error, OSError | RuntimeError):
            return None
    return None


@contextlib.contextmanager
def storage_errors(url: str | Path) -> Iterator[None]:
    """Turn a full disk, a read-only target or an object store that fails into one clear StorageError.

    Raises:
        StorageError: nothing can be written there, now or later, unless the user does something.
        StorageAwayError: an object store does not answer now. Other errors pass through.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StorageError | FileNotFoundError):
            raise
        reason = _why_not_written(error)
        if reason is not None:
            raise StorageError(
                f"{url}: cannot be written: {reason}; what is finished is kept: free space or permissions, "
                "then start the same command again"
            ) from error
        remote = isinstance(error, OSError) or type(error).__module__.split(".")[0] in CLIENTS
        if "://" not in str(url) or not remote:
            raise
        raise StorageAwayError(
            f"{url}: does not answer ({type(error).__name__}: {error}); what is finished is kept: start the same command "
            "again when it does"
        ) from error
