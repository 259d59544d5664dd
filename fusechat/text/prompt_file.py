"""`fusechat_prompt.json` in a model's folder: how its chat template was used in training.

A model that FuseChat trained is asked as it was taught: with the same arguments of the template, the same date, and the
same text before an answer.
"""

import json
from pathlib import Path

from .rendered import ChatTemplate

PROMPT_FILE = "fusechat_prompt.json"


def write_prompt_file(folder: Path, template: ChatTemplate) -> None:
    """Keep how a template is used; its text stands in chat_template.jinja."""
    attributes = {key: value for key, value in template.to_attributes().items() if key != "template"}
    (folder / PROMPT_FILE).write_text(json.dumps(attributes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_prompt_file(folder: Path, text: str) -> ChatTemplate:
    """How the template of this text is used by the model in the folder; a model that says nothing uses it as it is."""
    path = folder / PROMPT_FILE
    if not path.is_file():
        return ChatTemplate(text)
    return ChatTemplate.from_attributes({"template": text, **json.loads(path.read_text(encoding="utf-8"))})
