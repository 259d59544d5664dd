"""The first half of writing: files of prompts in; a prompts artifact, checked and in one form, out."""

import datetime
from collections import Counter

from ..config import DialoguesSection
from ..config.layout import RunLayout
from ..progress import Progress
from ..storage import artifact
from ..storage.artifact import Artifact
from .prompts import read_prompts, write_prompts
from .recipes import prompts_recipe, without_places

PROMPTS_FILE = "prompts.jsonl"


def prepare_prompts(layout: RunLayout, section: DialoguesSection, *, progress: Progress) -> Artifact:
    """Read and check the prompts of a run.

    Raises:
        DialogueError: a file that cannot be read or holds no prompt, or a row that is none (unless `on_bad: skip`).
    """
    settings = {**prompts_recipe(section).settings, "prompts": without_places(section.prompts)}
    claim = artifact.claim(layout.prompts_path, "prompts", settings=settings, parents={}, if_changed=layout.if_changed)
    if claim.artifact is not None:
        return claim.artifact
    bad: list[tuple[str, str]] = []
    prompts = read_prompts(section.prompts, on_bad=section.on_bad, bad=bad)
    for place, reason in bad:
        progress.say(f"prompts: {place}: {reason}")
    write_prompts(layout.prompts_path / PROMPTS_FILE, prompts)
    return claim.finish(
        {
            "prompts": len(prompts),
            "references": sum(bool(prompt.reference) for prompt in prompts),
            "kinds": dict(Counter(prompt.dialogue.kind for prompt in prompts)),
            # Templates may write the day; a run that goes on tomorrow asks as it did today.
            "date": datetime.date.today().isoformat(),
            "skipped": [f"{place}: {reason}" for place, reason in bad],
        }
    )
