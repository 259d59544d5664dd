"""How a command ends that something went wrong with: an error in; one line for people and an exit status out."""

import errno
import re
import sys
from typing import NoReturn

from ..errors import FuseChatError, causes, first_line

_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|[Cc]annot allocate memory|can't start new thread")
"""What libraries say where the machine has no memory left; of a GPU's, stages say more themselves."""


def _lack_of_memory(raised: BaseException) -> str | None:
    """What says in an error, or in one that it was raised from, that the machine gave no memory; None for any other error."""
    for error in causes(raised):
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return first_line(error)[:200]
    return None


def end(error: Exception) -> NoReturn:
    """Say in one line what ended the command; what is none of the user's and of the machine's doing is raised again."""
    kept = "what is finished is kept"
    lacking = _lack_of_memory(error)
    if lacking is not None:
        line, status = f"out of memory ({lacking}); {kept}: give the process more, then start the same command again", 1
    elif isinstance(error, FuseChatError):
        line, status = str(error), error.exit_status
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        place = error.filename or "the run folder"
        line, status = (
            f"{place}: cannot be written: {error.strerror}; {kept}: free space, then start the same command again",
            2,
        )
    elif isinstance(error, OSError) and error.filename is not None:  # a file that somebody else took away, say
        line, status = f"{error.filename}: {error.strerror}; {kept}: start the same command again", 1
    else:
        raise error
    print(f"fusechat: {line}", file=sys.stderr)
    sys.exit(status)
