"""Dialogues as long as a model's positions, under either capture; no engine is started."""

import json
import shutil
from pathlib import Path

import pytest
from stages_here import prepare_dialogues, tokenize

from fusechat.config.run import RunConfig, load_config
from fusechat.errors import ConfigError
from fusechat.models.resolved_model import resolve
from fusechat.storage.tokens_reader import read_tokens
from inference.stage import claim_store


def claim(config: RunConfig) -> None:
    claim_store(config.layout, resolve(config.pivot, config.layout.digests_path), config.extraction)


def test_dialogue_of_all_positions_fits_but_for_the_token_that_prompt_logprobs_samples(
    run_file: Path, tmp_path: Path
) -> None:
    pivot = tmp_path / "pivot"
    shutil.copytree(load_config(run_file).pivot.model, pivot)
    config = load_config(run_file, [f"pivot.model={pivot}"])
    prepare_dialogues(config)
    tokenize(config, "llama")
    longest = int(read_tokens(config.tokens_url("llama")).lengths.max())
    values = json.loads((pivot / "config.json").read_text())
    (pivot / "config.json").write_text(json.dumps({**values, "max_position_embeddings": longest}))
    claim(config)
    reference = load_config(
        run_file, [f"pivot.model={pivot}", "extraction.capture=prompt_logprobs", "run.if_changed=restart"]
    )
    with pytest.raises(ConfigError, match=f"has {longest:,} tokens, the model reads {longest - 1:,} beside the token"):
        claim(reference)
    (pivot / "config.json").write_text(json.dumps({**values, "max_position_embeddings": longest + 1}))
    claim(reference)
