"""The tokenize stage on dialogues with reasoning and tools: what is scored where, what is set aside, how models are asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from reasoning_runs import reasoning_run
from stages_here import prepare_dialogues, tokenize
from tiny_models import CHATML

from fusechat.app.inspection import token_lines
from fusechat.config import RunConfig, load_config
from fusechat.errors import ConfigError, DialogueError, ModelError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.contracts import TokenField
from fusechat.storage.tokens_reader import read_tokens
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Dialogue, Message, read_dialogues
from fusechat.text.rendered import ChatTemplate
from fusechat.text.template_heads import spoken
from fusechat.text.tokenization import tokenize_prompt

NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def config(tmp_path: Path, tiny_models: dict[str, Path]) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(reasoning_run(tmp_path / "out", tiny_models)), encoding="utf-8")
    return load_config(path, [])


def with_dialogues(config: RunConfig, tmp_path: Path, rows: list[list[dict]], **changes: object) -> RunConfig:
    """The run over other dialogues, with other values."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"d{n}", "messages": row}) + "\n" for n, row in enumerate(rows)), encoding="utf-8"
    )
    values = config.dump()
    values["dialogues"] |= {"train": [str(path)], "held_out_share": 0.0, **changes.pop("dialogues", {})}
    values["pivot"] |= changes.pop("pivot", {})
    values["sources"][0] |= changes.pop("source", {})
    return RunConfig.model_validate(values)


def template_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "template.jinja"
    path.write_text(text, encoding="utf-8")
    return str(path)


def exchange(user: str = "How many?", assistant: str = "Three.", **keys: object) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant, **keys}]


def test_dialogue_whose_earlier_thoughts_are_hidden_is_an_example_for_each_and_each_turn_is_scored_once(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare_dialogues(config, progress=Progress())
    assert prepared.counts["train_added_for_hidden_reasoning"] > 0 and prepared.counts["reasons"]
    assert "hides earlier reasoning" in capsys.readouterr().err
    dialogues = list(read_dialogues(config.dialogues_path / "train.jsonl"))
    tokenize(config, "smollm2")
    tokens = read_tokens(config.tokens_url("smollm2"))
    covered: dict[str, list[str]] = {}
    for number, dialogue in enumerate(dialogues):
        place, data = tokens.tokens_of(number), dialogue.field_bytes
        own = np.isin(tokens.field[place], (TokenField.REASONING, TokenField.CONTENT)) & tokens.is_scored[place]
        said = b"".join(data[start:end] for start, end in tokens.span[place][own].tolist()).decode()
        covered.setdefault(dialogue.id.split(",")[0], []).append(said)
        for message in dialogue.messages:
            assert message.role != "user" or message.content not in said
    for whole in read_dialogues(config.dialogues.train):
        if whole.id in covered:
            expected = "".join(m.reasoning + m.content for m in whole.messages if m.role == "assistant")
            assert "".join(covered[whole.id]) == expected


def test_other_template_scores_the_same_bytes_and_calls_are_counted_apart(config: RunConfig) -> None:
    prepare_dialogues(config)
    for name in ("smollm2", "velan-moe"):
        tokenize(config, name)
    pivot, source = (read_tokens(config.tokens_url(name)) for name in ("smollm2", "velan-moe"))
    assert pivot.num_dialogues == source.num_dialogues
    own = [np.isin(one.field, (TokenField.REASONING, TokenField.CONTENT)) & one.is_scored for one in (pivot, source)]
    widths = [
        int((one.span[mask, 1] - one.span[mask, 0]).sum()) for one, mask in zip((pivot, source), own, strict=True)
    ]
    assert widths[0] == widths[1] > 1000
    assert (pivot.call_digest != 0).any() and (
        (pivot.call_digest == source.call_digest) == (pivot.call_digest == 0)
    ).all()
    shown = "\n".join(token_lines(config.tokens_url("smollm2"), int(np.argmax(pivot.call_digest)), 400))
    assert "tool_calls" in shown and "scored" in shown and "reasoning" in shown and "tokens of each field" in shown


def test_pivot_that_reasons_is_asked_with_the_head_of_what_was_trained(config: RunConfig) -> None:
    prepare_dialogues(config)
    tokenize(config, "smollm2")
    tokens = read_tokens(config.tokens_url("smollm2"))
    template = ChatTemplate.from_attributes(tokens.attributes)
    assert template.reasons and template.date == artifact.load(config.dialogues_path, "dialogues").counts["date"]
    tokenizer, _ = load_tokenizer(config.pivot.model, template=template.text)
    for number, dialogue in enumerate(read_dialogues(config.dialogues_path / "train.jsonl")):
        place = tokens.tokens_of(number)
        if len(dialogue.messages) == 2:
            prompt = tokenize_prompt(tokenizer, template, dialogue.messages[:1])
            first = int(np.argmax(tokens.is_scored[place]))
            assert prompt == tokens.token_ids[place][:first].tolist()
            written = tokens.token_ids[place][first:].tolist()
            assert spoken(tokenizer, template, written).strip() == dialogue.messages[1].content
            assert spoken(tokenizer, template, written[:5]) == ""


def test_template_that_puts_a_thought_before_answers_asks_as_it_trained(config: RunConfig, tmp_path: Path) -> None:
    changed = with_dialogues(
        config, tmp_path, [exchange(), exchange("And now?")], pivot={"template": template_file(tmp_path, EMPTY_THOUGHT)}
    )
    prepare_dialogues(changed)
    tokenize(changed, "smollm2")
    tokens = read_tokens(changed.tokens_url("smollm2"))
    template = ChatTemplate.from_attributes(tokens.attributes)
    assert template.prompt == "trained"
    tokenizer, _ = load_tokenizer(changed.pivot.model, template=template.text)
    prompt = tokenize_prompt(tokenizer, template, [Message("user", "How many?")])
    assert prompt == tokens.token_ids[: int(np.argmax(tokens.is_scored))].tolist()
    assert tokenizer.decode(prompt).endswith("assistant\n<think></think>")


def test_template_without_end_of_turn_takes_the_models_own_end_or_is_refused(config: RunConfig, tmp_path: Path) -> None:
    changed = with_dialogues(config, tmp_path, [exchange()], pivot={"template": template_file(tmp_path, NO_END)})
    prepare_dialogues(changed)
    eos = json.loads((Path(changed.pivot.model) / "generation_config.json").read_text())["eos_token_id"]
    tokenize(changed, "smollm2")
    tokens = read_tokens(changed.tokens_url("smollm2"))
    assert tokens.token_ids[-1] == eos and tokens.is_scored[-1] and tokens.turn_end_ids() == [eos]
    folder = tmp_path / "without"
    folder.mkdir()
    for path in Path(changed.pivot.model).iterdir():
        if path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    changed = with_dialogues(
        config, tmp_path, [exchange()],
        pivot={"template": template_file(tmp_path, NO_END), "model": str(folder)}, dialogues={"max_tokens": 500},
    )  # fmt: skip
    changed = RunConfig.model_validate({**changed.dump(), "run": {"output": str(tmp_path / "other")}})
    prepare_dialogues(changed)
    with pytest.raises(ModelError, match=r"ends no assistant turn.*names no eos_token_id"):
        tokenize(changed, "smollm2")


REFUSING = CHATML.replace(
    "{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for", 1
)


def test_dialogue_that_a_source_cannot_read_is_set_aside_for_it_alone(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = [{"role": "system", "content": "Be brief."}, *exchange()]
    changed = with_dialogues(
        config, tmp_path, [exchange(), system, exchange("x " * 150)],
        pivot={"template": "native"}, source={"template": template_file(tmp_path, REFUSING)},
    )  # fmt: skip
    prepare_dialogues(changed)
    made = tokenize(changed, "velan-moe", progress=Progress())[0]
    tokens = read_tokens(changed.tokens_url("velan-moe"))
    assert tokens.num_dialogues == 3 and tokens.lengths[1] == 0 and tokens.lengths[0] > 0 and tokens.lengths[2] > 0
    assert len(made.counts["set_aside"]) == 1 and "d1" in made.counts["set_aside"][0]
    said = capsys.readouterr().err
    assert "1 dialogues are set aside for this source" in said and "no system" in said


def test_dialogues_that_the_pivot_cannot_read_are_named_together_or_left_out(config: RunConfig, tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}, *exchange()]
    template = template_file(tmp_path, REFUSING)
    changed = with_dialogues(
        config, tmp_path, [exchange(), system, system[:1] + exchange("So?")], pivot={"template": template}
    )
    with pytest.raises(DialogueError, match=r"does not show 2 dialogues(.|\n)*'d1'(.|\n)*'d2'"):
        prepare_dialogues(changed)
    skipping = with_dialogues(
        config, tmp_path, [exchange(), system], pivot={"template": template}, dialogues={"on_bad": "skip"}
    )
    made = prepare_dialogues(RunConfig.model_validate({**skipping.dump(), "run": {"output": str(tmp_path / "skip")}}))
    assert made.counts["train"] == 1 and "no system" in made.counts["skipped"][0]


def test_turn_that_is_no_target_is_context(config: RunConfig, tmp_path: Path) -> None:
    rows = [[*exchange(train=False), *exchange("And now?", "Four.")]]
    changed = with_dialogues(config, tmp_path, rows)
    prepare_dialogues(changed)
    tokenize(changed, "smollm2")
    tokens = read_tokens(changed.tokens_url("smollm2"))
    dialogue = next(iter(read_dialogues(changed.dialogues_path / "train.jsonl")))
    spans = tokens.span[tokens.is_scored & (tokens.span[:, 0] >= 0)].tolist()
    assert b"".join(dialogue.field_bytes[start:end] for start, end in spans) == b"Four."
    assert int((tokens.is_scored & (tokens.field == TokenField.END_OF_TURN)).sum()) == 1


def test_template_arguments_and_the_date_reach_the_template(config: RunConfig, tmp_path: Path) -> None:
    text = "{{ strftime_now('%Y-%m-%d') + ' ' + tone + '\n' }}" + CHATML
    changed = with_dialogues(
        config, tmp_path, [exchange()],
        pivot={"template": template_file(tmp_path, "{% set tone = tone or 'none' %}" + text), "template_arguments": {"tone": "dry"}},
    )  # fmt: skip
    date = prepare_dialogues(changed).counts["date"]
    tokenize(changed, "smollm2")
    tokens = read_tokens(changed.tokens_url("smollm2"))
    tokenizer, _ = load_tokenizer(changed.pivot.model)
    assert tokenizer.decode(tokens.token_ids.tolist()).startswith(f"{date} dry\n")
    past = ChatTemplate(text, {"tone": "wry"}, "2001-02-03")
    prompt = tokenize_prompt(tokenizer, past, Dialogue("d", (Message("user", "So?"),)))
    assert tokenizer.decode(prompt).startswith("2001-02-03 wry\n")


def test_template_argument_that_fusechat_gives_itself_is_refused(config: RunConfig, tmp_path: Path) -> None:
    changed = with_dialogues(config, tmp_path, [exchange()], pivot={"template_arguments": {"tools": []}})
    with pytest.raises(ConfigError, match="smollm2: template_arguments has 'tools'"):
        prepare_dialogues(changed)


def test_dialogue_leaves_room_for_the_token_that_prompt_logprobs_samples(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = with_dialogues(config, tmp_path, [exchange(), exchange("How many apples? " * 9)])
    prepare_dialogues(changed)
    tokenize(changed, "velan-moe")
    longest = int(read_tokens(changed.tokens_url("velan-moe")).lengths[1])
    monkeypatch.setattr("fusechat.text.model_tokens.position_limit", lambda folder: longest)
    for capture, kept in (("topk_pooler", longest), ("prompt_logprobs", 0)):
        values = {**changed.dump(), "run": {"output": str(tmp_path / capture)}}
        values["extraction"] = {**values["extraction"], "capture": capture}
        run = RunConfig.model_validate(values)
        prepare_dialogues(run)
        tokenize(run, "velan-moe")
        assert read_tokens(run.tokens_url("velan-moe")).lengths[1] == kept


def test_dialogue_longer_than_a_source_reads_is_set_aside_for_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = with_dialogues(config, tmp_path, [exchange(), exchange("How many apples? " * 9)])
    prepare_dialogues(changed)
    monkeypatch.setattr("fusechat.text.model_tokens.position_limit", lambda folder: 60)
    made = tokenize(changed, "velan-moe")[0]
    tokens = read_tokens(changed.tokens_url("velan-moe"))
    assert tokens.lengths[0] > 0 and tokens.lengths[1] == 0
    assert "and the model reads 60" in made.counts["set_aside"][0] and made.counts["set_aside"][0].startswith("d1")
    assert "set aside for this model" in token_lines(changed.tokens_url("velan-moe"), 1, 10)[0]
    monkeypatch.undo()
    other = RunConfig.model_validate({**changed.dump(), "run": {"output": str(tmp_path / "other")}})
    prepare_dialogues(other)
    monkeypatch.setattr("fusechat.text.model_tokens.position_limit", lambda folder: 3)
    with pytest.raises(ModelError, match="none of the 2 dialogues of train can be read by it"):
        tokenize(other, "velan-moe")
