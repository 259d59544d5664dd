"""The Python API: docs/python-api.md runs as it stands, and agrees with the stages' artifacts."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny_models_module

import fusechat
from fusechat.app.open_rows import Rows
from fusechat.app.python_api import Example
from fusechat.errors import AlignmentError, ArtifactError, DialogueError
from fusechat.storage.contracts import RowKind

PAGE = Path(__file__).parents[2] / "docs/python-api.md"
ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 4?"}, {"role": "assistant", "content": f"It is {n + 4}."}]}
    for n in range(6)
]


def test_the_page_runs(tiny_models: dict[str, Path], run_file: Path, tmp_path: Path) -> None:
    blocks = [block for block in page_blocks() if "ADDRESS" not in block]  # tests/cluster/test_service.py has a service
    values = {
        "PIVOT": tiny_models["llama"], "SOURCE": tiny_models["mixtral"], "RUN_FILE": run_file, "OUT": tmp_path,
        **{name: tiny_models_module.save_llama(tmp_path / name.lower(), seed=seed) for seed, name in ((5, "ONE"), (6, "OTHER"))},
    }  # fmt: skip
    head = "from pathlib import Path\n" + "".join(f"{name} = Path({str(value)!r})\n" for name, value in values.items())
    script = tmp_path / "page.py"
    body = head + "\n".join(blocks)
    script.write_text("def page():\n" + "".join(f"    {line}\n" for line in body.splitlines()) + MAIN, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "14 dialogues" in done.stdout and "end of turn" in done.stdout


def page_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


MAIN = '\n\nif __name__ == "__main__":\n    page()\n'


def test_every_name_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in fusechat.__all__:
        assert name == "__version__" or f"fusechat.{name}(" in page
        assert getattr(fusechat, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'skore'"):
        fusechat.skore  # noqa: B018


def test_rows_of_the_same_model_pass_through(tiny_models: dict[str, Path]) -> None:
    examples = fusechat.tokenize(tiny_models["llama"], ROWS)
    scored = [made_up_rows(example) for example in examples]
    aligned = fusechat.align(tiny_models["llama"], tiny_models["llama"], ROWS, scored)
    for ours, theirs in zip(aligned, scored, strict=True):
        assert ours.kind is not None and all(RowKind(kind).is_real for kind in ours.kind)
        np.testing.assert_allclose(ours.label_logprob, theirs.label_logprob, rtol=1e-5)


def made_up_rows(example: Example) -> Rows:

    labels = example.token_ids[example.is_scored]
    ids = np.stack([labels, (labels + 1) % 300], axis=1).astype(np.int32)
    logprobs = np.log(np.tile(np.float32([0.6, 0.3]), (len(labels), 1)))
    return Rows(example.token_ids, example.is_scored, ids, logprobs, logprobs[:, 0])


def test_rows_of_other_dialogues_are_refused(tiny_models: dict[str, Path]) -> None:
    scored = [made_up_rows(example) for example in fusechat.tokenize(tiny_models["mixtral"], ROWS[:3])]
    with pytest.raises(AlignmentError, match=r"found rows of 3 examples, expected 6.*score the pivot's examples"):
        fusechat.align(tiny_models["llama"], tiny_models["mixtral"], ROWS, scored)


def test_reasoning_in_every_turn_is_shown_turn_by_turn(tiny_models: dict[str, Path]) -> None:
    """A template that hides earlier thoughts: one example per turn that it shows, each token scored once."""
    turns = [
        ("user", "1 + 1?", ""),
        ("assistant", "Two.", "add"),
        ("user", "2 + 2?", ""),
        ("assistant", "Four.", "twice"),
    ]
    row = {"messages": [{"role": role, "content": text, "reasoning": thought} for role, text, thought in turns]}
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    first, second = fusechat.tokenize(tiny_models["llama"], [row], template=template)
    said = [
        [one.dialogue.field_bytes[start:end] for start, end in one.spans[one.is_scored] if start >= 0]
        for one in (first, second)
    ]
    assert [b"".join(parts) for parts in said] == [b"addTwo.", b"twiceFour."]


def test_a_broken_row_is_named(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(DialogueError, match=r"row 2: .*robot"):
        fusechat.tokenize(tiny_models["llama"], [ROWS[0], {"messages": [{"role": "robot", "content": "x"}]}])


def test_only_finished_stores_are_opened(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found nothing finished, expected a finished store of rows"):
        fusechat.open_rows(tmp_path)
