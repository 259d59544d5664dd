"""What a model wrote comes back into its fields: the way back from every form of template, and what is refused."""

from pathlib import Path

import pytest
from small_tokenizers import byte_level
from transformers import PreTrainedTokenizerFast

from fusechat.errors import DialogueError
from fusechat.text.answer_reading import AnswerReader
from fusechat.text.dialogues import Dialogue, Message, ToolCall
from fusechat.text.rendered import ChatTemplate
from fusechat.text.tokenization import tokenize_dialogue, tokenize_prompt

TEMPLATES = Path(__file__).parents[2] / "examples" / "templates"
HEAD = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HERMES = (
    HEAD + "{{ m['content'] }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>{% endfor %}" + END
)
BARE = (
    HEAD + "{{ m['content'] }}{% for c in m.tool_calls or [] %}"
    "{{ {'name': c.function.name, 'parameters': c.function.arguments} | tojson }}{% endfor %}" + END
)
LIST = (
    HEAD + "{{ m['content'] }}{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]{% endif %}" + END
)
TAGS = (
    HEAD + "{{ m['content'] }}{% for c in m.tool_calls or [] %}<call><name>{{ c.function.name }}</name>"
    "{{ c.function.arguments }}</call>{% endfor %}" + END
)
OPENED = (
    HEAD
    + "{% if m['role'] == 'assistant' %}{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m['content'] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CHANNELS = (
    HEAD + "{% if m['role'] == 'assistant' %}{% if m.reasoning_content %}<|channel|>analysis<|message|>"
    "{{ m.reasoning_content }}<|end|>{% endif %}<|channel|>final<|message|>{% endif %}{{ m['content'] }}" + END
)
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
ASKED = Dialogue("asked", (Message("user", "How many hours?"),))
WITH_TOOLS = Dialogue("asked", (Message("user", "How many hours?"),), tools=(LOOK,))
CALLS = (ToolCall("look", {"city": "Ulm", "deep": {"a": [1]}}, "c00000001"), ToolCall("look", {}, "c00000002"))


def written(template: str, asked: Dialogue, answer: Message) -> tuple[AnswerReader, list[int]]:
    """The reader, and the ids that a model would have written to say exactly this."""
    tokenizer: PreTrainedTokenizerFast = byte_level()
    used = ChatTemplate(template)
    reader = AnswerReader(tokenizer, used)
    whole = Dialogue("whole", (*asked.messages, answer), tools=asked.tools)
    ids = tokenize_dialogue(tokenizer, used, whole).token_ids.tolist()
    prompt = tokenize_prompt(tokenizer, used, asked)
    assert ids[: len(prompt)] == prompt
    stops = [place for place, token in enumerate(ids) if token in reader.stop_ids and place >= len(prompt)]
    return reader, ids[len(prompt) : stops[-1]]


def read_text(template: str, asked: Dialogue, text: str) -> Message:
    """What the reader makes of a text that a model wrote."""
    tokenizer = byte_level()
    return AnswerReader(tokenizer, ChatTemplate(template)).read(
        tokenizer(text, add_special_tokens=False).input_ids, asked
    )


@pytest.mark.parametrize(
    "template",
    [
        HERMES,
        CHANNELS,
        *((TEMPLATES / f"{name}.jinja").read_text() for name in ("thinking", "thinking_aloud", "chatml")),
    ],
    ids=["hermes", "channels", "thinking", "thinking_aloud", "chatml"],
)
def test_content_comes_back(template: str) -> None:
    answer = Message("assistant", "Twelve hours.\n\nOr so.")
    reader, ids = written(template, ASKED, answer)
    assert reader.read(ids, ASKED) == answer


@pytest.mark.parametrize(
    "template",
    [OPENED, CHANNELS, *((TEMPLATES / f"{name}.jinja").read_text() for name in ("thinking", "thinking_aloud"))],
    ids=["opened", "channels", "thinking", "thinking_aloud"],
)
def test_reasoning_comes_back_into_its_field(template: str) -> None:
    answer = Message("assistant", "Twelve hours.", reasoning="The dog sleeps,\nso 12.")
    reader, ids = written(template, ASKED, answer)
    assert reader.read(ids, ASKED) == answer


@pytest.mark.parametrize("template", [HERMES, LIST], ids=["hermes", "list"])
@pytest.mark.parametrize("content", ["", "I look."])
def test_tool_calls_come_back_with_their_arguments(template: str, content: str) -> None:
    answer = Message("assistant", content, tool_calls=CALLS)
    reader, ids = written(template, WITH_TOOLS, answer)
    read = reader.read(ids, WITH_TOOLS)
    assert [(call.name, dict(call.arguments)) for call in read.tool_calls] == [
        ("look", {"city": "Ulm", "deep": {"a": [1]}}), ("look", {})
    ]  # fmt: skip
    assert read.content == content and read.reasoning == ""
    assert [call.id for call in read.tool_calls] == (["c00000001", "c00000002"] if template == LIST else ["", ""])


def test_bare_json_is_a_call_where_the_template_writes_calls_so() -> None:
    reader, ids = written(BARE, WITH_TOOLS, Message("assistant", "", tool_calls=CALLS[:1]))
    assert reader.read(ids, WITH_TOOLS).tool_calls == (ToolCall("look", {"city": "Ulm", "deep": {"a": [1]}}),)
    said = 'It is {"name": 3}.'
    assert read_text(BARE, WITH_TOOLS, said) == Message("assistant", said)


def test_json_without_tools_is_content() -> None:
    said = '{"name": "look", "arguments": {}}'
    assert read_text(HERMES, ASKED, said) == Message("assistant", said)


@pytest.mark.parametrize(
    ("template", "asked", "text", "reason"),
    [
        (OPENED, ASKED, "Twelve hours.", "reasoning does not end"),
        ((TEMPLATES / "thinking.jinja").read_text(), ASKED, "<think>\nThe dog", "reasoning does not end"),
        ((TEMPLATES / "chatml.jinja").read_text(), ASKED, "<think>The dog", "reasoning does not end"),
        (HERMES, WITH_TOOLS, '<tool_call>{"name": "look", "argu', "cannot be read back"),
        (HERMES, WITH_TOOLS, '<tool_call>{"name": "jump", "arguments": {}}</tool_call>', "'jump', which is none of"),
        (TAGS, WITH_TOOLS, "<call><name>look</name></call>", "cannot be read back"),
        (HERMES, ASKED, " \n", "says nothing"),
        (HERMES, ASKED, "Twelve.<|im_start|>user\nMore", "behind the control token '<|im_start|>'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_back_is_refused(template: str, asked: Dialogue, text: str, reason: str) -> None:
    with pytest.raises(DialogueError, match=reason):
        read_text(template, asked, text)


def test_thought_within_a_content_is_reasoning_where_the_template_shows_none() -> None:
    read = read_text((TEMPLATES / "chatml.jinja").read_text(), ASKED, "<think>The dog sleeps.</think>\nTwelve.")
    assert read == Message("assistant", "Twelve.", reasoning="The dog sleeps.")


def test_bytes_that_are_no_text_are_refused() -> None:
    tokenizer = byte_level()
    half = tokenizer("蓝", add_special_tokens=False).input_ids[:1]
    with pytest.raises(DialogueError, match="bytes that are no text"):
        AnswerReader(tokenizer, ChatTemplate(HERMES)).read(half, ASKED)
