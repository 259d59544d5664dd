"""How a target is asked and where its answers end: written beside its weights, for every engine that opens the folder.

Tokens in; `eos_token_id` of generation_config.json, and how the chat template is used, out.
"""

import json
from pathlib import Path

from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.write_errors import storage_errors
from fusechat.text.prompt_file import write_prompt_file
from fusechat.text.rendered import ChatTemplate


def write_target_prompt(target: Path, tokens: TokensReader) -> None:
    """Let a target stop where its training ended a turn, and say how it was asked.

    Args:
        target: its folder, which holds the pivot's own generation settings, if it has some.
    """
    path = target / "generation_config.json"
    with storage_errors(target):
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        own = settings.get("eos_token_id")
        own_ids = own if isinstance(own, list) else [] if own is None else [own]
        ends = [*own_ids, *(token_id for token_id in tokens.turn_end_ids() if token_id not in own_ids)]
        if ends != own_ids:
            settings["eos_token_id"] = ends if len(ends) > 1 else ends[0]
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        write_prompt_file(target, ChatTemplate.from_attributes(tokens.attributes))
