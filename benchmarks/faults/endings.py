"""Whether a command ended as one may: finished, or with one clear line that names what to do; and doing what it names."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from . import command
from .command import Ending
from .world import Run

LINE = re.compile(r"^fusechat: .+", re.MULTILINE)
PATH = r"(?:[a-z0-9]+://|/)[^\s`'\",;:]+"
REMEDIES = {
    "inspect": re.compile(rf"fusechat inspect ({PATH}) --repair"),
    "restart": re.compile(r"--set run\.if_changed=restart"),
    "delete": re.compile(rf"({PATH}): [^\n]*?(?:delete (?:this file|it|this folder))"),
    "again": re.compile(
        r"free some|(?:same command|start) (?:goes on|again|tries)|again when it does|run again|start again|later"
    ),
    "wait": re.compile(r"wait for it"),
    "stage": re.compile(
        r"run (?:the stage|`fusechat [a-z]+`)|run the stage that|makes it again|tokenize (?:the dialogues|both|again)"
    ),
    "row": re.compile(r"remove|correct|on_bad|fix|expected"),
}
"""What a message may tell to do; a remedy beside the names here is one that nobody can follow."""


def is_clear(ending: Ending) -> bool:
    """Whether a failed command said one clear line, and ended as it should."""
    return ending.status in (1, 2) and len(LINE.findall(ending.stderr)) == 1


def has_traceback(ending: Ending) -> bool:
    """Whether a person would see one."""
    return "Traceback (most recent call last)" in ending.stderr + ending.stdout


def message_of(ending: Ending) -> str:
    """From the clear line on."""
    match = LINE.search(ending.stderr)
    return ending.stderr[match.start() :] if match else ending.stderr[-1500:]


def follow(ending: Ending, run: Run, start: Callable[[list[str]], Ending]) -> tuple[str, Run] | None:
    """Do what the message says beside giving the same command again.

    Returns:
        the remedy's name and the run as its command is given next; None where nothing is named.
    """
    message = message_of(ending)
    if match := REMEDIES["inspect"].search(message):
        repaired = start(["inspect", match[1], "--repair"])
        return ("inspect", run) if repaired.status == 0 else None
    if match := REMEDIES["delete"].search(message):
        _delete(Path(match[1]), run)
        return "delete", run
    if REMEDIES["restart"].search(message):
        return "restart", Run(run.file, run.folder, (*run.overrides, "run.if_changed=restart"))
    for name in ("again", "wait", "stage", "row"):
        if REMEDIES[name].search(message):
            return name, run
    return None


def _delete(path: Path, run: Run) -> None:
    assert path.is_relative_to(run.folder), f"told to delete {path}, which is not of the run"
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def repair_command(url: str) -> Ending:
    """`fusechat inspect URL --repair`."""
    return command.run(["inspect", url, "--repair"])
