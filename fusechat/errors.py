"""The errors that FuseChat raises.

FuseChatError
├── UserError              a mistake in the input: one clear line, exit status 2
│   ├── ConfigError        a run file that cannot be meant as written (also a ValueError)
│   ├── DialogueError      a dialogue file or dialogue that breaks the rules (also a ValueError)
│   ├── ModelError         a model folder or checkpoint that is missing, damaged or does not fit
│   ├── ContractError      arrays that do not obey the contract between two stages (also a ValueError)
│   ├── ArtifactError      an artifact that is missing, damaged, or was made by another recipe
│   ├── StorageError       a target that cannot be written: full disk, read-only folder (also an OSError)
│   │   └── StorageAwayError   a store that does not answer now
│   ├── BusyError          another run holds this run folder
│   └── ClusterSetupError  a Ray cluster that does not fit the run: none there, wrong token, other versions, too few GPUs
├── AlignmentError         two tokenizations that cannot be laid on one another
├── EngineError           an engine that died, or failed its self-check
├── JudgeError             a judge's endpoint that does not answer
├── ServiceError           a service of engines that does not answer
└── ClusterError           Ray could not give what the plan needs, or shards were set aside

A message has three parts: what was found (value, file, array), what was expected, what to do next.
"""

from collections.abc import Iterator


class FuseChatError(Exception):
    """Base of all errors of this project; ends a command with exit status 1."""

    exit_status = 1


class UserError(FuseChatError):
    """A mistake in the input; ends a command with one line and exit status 2."""

    exit_status = 2


class ConfigError(UserError, ValueError):
    """A run file that cannot be meant as written."""


class DialogueError(UserError, ValueError):
    """A dialogue file or a dialogue that breaks the rules."""


class ModelError(UserError):
    """A model folder or checkpoint that is missing, damaged or does not fit."""


class ContractError(UserError, ValueError):
    """Arrays that do not obey the contract between two stages."""


class ArtifactError(UserError):
    """An artifact that is missing, damaged, or was made by another recipe."""


class StorageError(UserError, OSError):
    """A target that cannot be written."""


class StorageAwayError(StorageError):
    """A store that does not answer now; the same call may succeed later."""


class BusyError(UserError):
    """Another run holds this run folder, or is writing this store."""


class ClusterSetupError(UserError):
    """A Ray cluster that does not fit the run."""


class AlignmentError(FuseChatError):
    """Two tokenizations that cannot be laid on one another."""


class EngineError(FuseChatError):
    """An engine that died, or failed its self-check."""


class JudgeError(FuseChatError):
    """A judge's endpoint that does not answer."""


class ServiceError(FuseChatError):
    """A service of engines that does not answer, or answers something else."""


class ClusterError(FuseChatError):
    """Ray could not give what the plan needs, or shards were set aside."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from or while it was handled, back to the first; each once."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        yield following
        following = following.__cause__ or following.__context__


def first_line(error: BaseException) -> str:
    """What stands in one line of another message: an error's first line that is not blank, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
