"""The rules against the truth: a pivot without some of the source's merges, a source whose every distribution is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from benchmarks import alignment_truth
from benchmarks.alignment_rows import RULES, tokens_of
from fusechat.text.dialogues import read_dialogues


def test_true_rows_are_the_sums_over_all_that_reads_alike():
    """Source a, b, ab over pivot a, b: after `a` the source wrote either `ab` or `a`, then anything."""
    rows_of = {(): np.array([0.2, 0.1, 0.7]), (0,): np.array([0.5, 0.3, 0.2])}
    rows, unknown, respelled = alignment_truth.true_rows([0, 1], [2], 2, [(0,), (1,), (0, 1)], rows_of.__getitem__)
    np.testing.assert_allclose(rows, [[0.9, 0.1], [0.2 * 0.7 / 0.9, (0.7 + 0.2 * 0.3) / 0.9]])
    np.testing.assert_array_equal([unknown, respelled], 0)


def test_true_rows_in_other_tokens_go_on_as_the_sources_own():
    """After `ab` in one token or in two comes one row; the text in two tokens weighs what was written so."""
    rows_of = {(): np.array([0.2, 0.1, 0.7]), (0,): np.array([0.5, 0.3, 0.2]), (2,): np.array([0.1, 0.2, 0.7])}
    spelled = [(0,), (1,), (0, 1)]
    rows, _, respelled = alignment_truth.true_rows([0, 1, 1], [2, 1], 2, spelled, rows_of.__getitem__)
    np.testing.assert_allclose(rows[2], [0.8, 0.2])
    np.testing.assert_allclose(respelled, [0, 0, 0.2 * 0.3 / (0.7 + 0.2 * 0.3)])


def test_spellings_unfold_merges_down_to_the_pivot():
    splits = {3: (0, 1), 4: (3, 2), 5: (4, 4)}
    spelled = alignment_truth.spellings(splits, 6, 4)
    assert spelled == [(0,), (1,), (2,), (3,), (3, 2), (3, 2, 3, 2)]


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("truth") / "source"
    tokenizer = tiny_models.byte_level_tokenizer(420, tiny_models.CHATML)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(tokenizer)}))
    return folder


class _Bigrams:
    """A source that knows its own tokens' successors: mostly those of the text, a little of everything else."""

    def __init__(self, tokens, dialogue) -> None:
        size = int(tokens.attributes["vocab_size"])
        self._rows = np.full((size, size), 0.02 / size)
        np.add.at(self._rows, (tokens.token_ids[:-1], tokens.token_ids[1:]), 1.0)
        self._rows /= self._rows.sum(axis=1, keepdims=True)
        place = tokens.tokens_of(dialogue)
        self._before = int(tokens.token_ids[place][int(np.argmax(tokens.is_scored[place])) - 1])

    def __call__(self, written):
        return self._rows[written[-1] if written else self._before]


def test_default_rule_is_nearest_to_the_truth(source_folder, dialogue_files, tmp_path):
    dialogues = [d for d in read_dialogues([str(dialogue_files["train"])]) if d.messages[-1].role == "assistant"]
    dialogues = [d for d in dialogues if sum(m.role == "assistant" for m in d.messages) == 1]
    source = tokens_of(source_folder, dialogues)
    pivot_folder, spelled = alignment_truth.without_merges(source_folder, 300, tmp_path)
    pivot = tokens_of(pivot_folder, dialogues)
    assert any(len(spelling) > 1 for spelling in spelled) and pivot[1].num_tokens > source[1].num_tokens
    figures = alignment_truth.compare((pivot, source), spelled, lambda dialogue: _Bigrams(source[1], dialogue))
    assert figures["unknown_mass"] < 0.02
    assert figures["default"]["coverage"] == 1
    others = [figures[rule] for rule in RULES if rule != "default"]
    for figure in ("kl", "total_variation"):
        assert figures["default"][figure] < 0.9 * min(other[figure] for other in others), figures
