"""Chat templates: the text is the template's own, and contents are found where they stand, whatever is stripped."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_templates import CHATML, LLAMA2, each, tokenizer

from fusechat.errors import DialogueError, ModelError
from fusechat.text.chat_template import render
from fusechat.text.dialogues import Dialogue, Message, ToolCall
from fusechat.text.rendered import ChatTemplate

# The system message is folded into the first user message, and the sum is stripped: its user part on the right only.
# As recent reasoning models do: an empty thought before the last answer, unless the answer brings its own.
THINKING = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
    "{% if m['role'] == 'assistant' and '</think>' not in m['content'] %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'].lstrip('\\n') + '<end>' }}{% endfor %}"
)


def dialogue_of(*contents: str, system: str | None = None) -> Dialogue:
    roles = ("user", "assistant") * len(contents)
    messages = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    return Dialogue("d7", tuple([Message("system", system)] * (system is not None) + messages))


def shown_contents(template: str, dialogue: Dialogue) -> list[str]:
    """What stands at the ranges, after checking that it is what `covered` says, and that the text is the template's."""
    rendered = render(tokenizer(), template, dialogue)
    messages = [{"role": message.role, "content": message.content} for message in dialogue.messages]
    assert rendered.text == tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False)
    assert rendered.contents == tuple(
        dialogue.fields[piece.field].text[slice(*piece.covered)] for piece in rendered.pieces
    )
    pieces = [piece for pair in zip(rendered.template_parts, [*rendered.contents, ""], strict=True) for piece in pair]
    assert "".join(pieces) == rendered.text
    return list(rendered.contents)


WAYS = {
    "m['content']": str,
    "m['content'] | trim": str.strip,
    "m['content'].lstrip()": str.lstrip,
    "m['content'].rstrip()": str.rstrip,
    "m['content'].strip('\\n')": lambda text: text.strip("\n"),
    "m['content'].lstrip(' ')": lambda text: text.lstrip(" "),
}
texts = st.lists(
    st.sampled_from([" ", "\n", "\t", "\u3000", "a", "ab", ": ", "user: ", "zqcontent0z", "é"]), min_size=1, max_size=8
).map("".join)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=60)
@given(contents=st.lists(texts, min_size=2, max_size=4))
@example(contents=[" ", " \n"])
def test_render_finds_contents_in_whatever_way_they_are_stripped(way: str, contents: list[str]) -> None:
    template = each("{{ m['role'] + ': ' + (" + way + ") + '\\n' }}")
    assert shown_contents(template, dialogue_of(*contents)) == [WAYS[way](content) for content in contents]


@settings(deadline=None, max_examples=100)
@given(contents=st.lists(texts, min_size=2, max_size=4), system=st.none() | texts)
def test_render_finds_contents_that_are_stripped_by_role(contents: list[str], system: str | None) -> None:
    expected = [content.strip() for content in contents]
    if system is not None:
        expected = [system, contents[0].rstrip(), *expected[1:]]
        if not contents[0].strip():
            return  # the strip then reaches into the template's own text
    assert shown_contents(LLAMA2, dialogue_of(*contents, system=system)) == expected


def test_render_with_generation_prompt_ends_with_it() -> None:
    template = CHATML + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    question = Dialogue("q", (Message("user", " Why? "),))
    rendered = render(tokenizer(), template, question, add_generation_prompt=True)
    assert rendered.text == "<|im_start|>user\n Why? <|im_end|>\n<|im_start|>assistant\n"
    assert rendered.contents == (" Why? ",)
    assert render(tokenizer(), template, question).text == "<|im_start|>user\n Why? <|im_end|>\n"


def test_render_template_that_depends_on_a_content_finds_contents_that_stand_once() -> None:
    thought = "<think>\nHmm, four.\n</think>\n\nFour."
    assert shown_contents(THINKING, dialogue_of("Two and two?", thought)) == ["Two and two?", thought]
    assert shown_contents(THINKING, dialogue_of("Two and two?", "\n Four.")) == ["Two and two?", " Four."]
    with pytest.raises(ModelError, match="rewrites"):
        render(tokenizer(), THINKING, dialogue_of("Four.", thought))  # "Four." stands twice: no way to tell which it is


def test_render_template_that_holds_the_placeholder_still_works() -> None:
    assert shown_contents("zqcontent0z zqcontentq" + CHATML, dialogue_of("a ", " b")) == ["a ", " b"]


def test_render_template_with_the_date_survives_midnight() -> None:
    template = "{{ strftime_now('%d %b') + '\\n' }}" + CHATML
    for day, shown in (("2026-01-31", "31 Jan"), ("2026-02-01", "01 Feb")):
        made = render(tokenizer(), ChatTemplate(template, date=day), dialogue_of("a ", "b"))
        assert made.text.startswith(f"{shown}\n")


@pytest.mark.parametrize(
    ("way", "named"),
    [
        ("m['content'] | upper", "message 1 (user: 'Hello there')"),
        ("m['content'] | replace('there', 'you')", "message 1 (user: 'Hello there')"),
        ("m['content'][:6]", "message 1 (user: 'Hello there')"),
        ("m['content'] if m['role'] == 'user' else m['content'].title()", "message 2 (assistant: 'Good day')"),
    ],
)
def test_render_template_that_rewrites_a_content_is_refused(way: str, named: str) -> None:
    with pytest.raises(ModelError) as caught:
        render(tokenizer(), each("{{ '|' + (" + way + ") }}"), dialogue_of("Hello there", "Good day"))
    message = str(caught.value)
    assert ("dialogue 'd7'" in message and named in message) or "0 times, expected once" in message


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (each("{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}"), r"message 1 of 3 \(system\) 0 times"),
        (each("{{ m['content'] + m['content'] }}"), r"message 1 of 3 \(system\) 2 times"),
        (
            "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}",
            "system, user, assistant into another order",
        ),
    ],
)
def test_render_template_that_drops_repeats_or_moves_a_message_is_refused(template: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        render(tokenizer(), template, dialogue_of("a", "b", system="s"))


def test_render_template_that_refuses_a_role_names_the_dialogue_and_its_words() -> None:
    template = each(
        "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ m['content'] }}"
    )
    with pytest.raises(DialogueError, match=r"'d7'.* roles system, user, assistant \(no system role\); set `template`"):
        render(tokenizer(), template, dialogue_of("a", "b", system="s"))


KIMI = each(
    "{% if m['role'] == 'assistant' %}{{ '<a><think>' }}{% if loop.last and m.tool_calls %}{{ m.reasoning_content }}{% endif %}"
    "{{ '</think>' + m['content'] }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.id + '<arg>' + c.function.arguments | tojson }}"
    "{% endfor %}{{ '<end>' }}{% else %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endif %}"
)


def test_calls_are_found_where_the_template_writes_ids_alone_and_hides_the_thought_before_an_answer() -> None:
    call = ToolCall("look", {"city": "Ulm"}, "functions.look:0")
    messages = (
        Message("user", "Where?"), Message("assistant", "", "I look.", (call,)), Message("tool", "There.", tool_call_id=call.id),
        Message("assistant", "Here."),
    )  # fmt: skip
    whole = render(tokenizer(), KIMI, Dialogue("d", messages))
    until = render(tokenizer(), KIMI, Dialogue("d", messages[:2]))
    for rendered in (whole, until):
        assert rendered.turns[0].calls is not None
        calls = rendered.text[slice(*rendered.turns[0].calls)]
        assert calls == '</think><call>functions.look:0<arg>{"city": "Ulm"}'
    assert whole.hidden == ((1, "reasoning"),) and until.hidden == ()


@pytest.mark.parametrize("said", ["", "Let me look."])
def test_calls_are_found_where_the_template_writes_the_last_turn_otherwise(said: str) -> None:
    template = each(
        "{{ '<' + m['role'] + '>' + m['content'] }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function | tojson }}"
        "{{ '' if loop_last else ' id=' + c.id }}{% endfor %}{{ '' if loop.last else '<end>' }}"
    ).replace("{% for c in", "{% set loop_last = loop.last %}{% for c in")
    call = ToolCall("look", {"city": "Ulm"}, "call1")
    messages = (
        Message("user", "Where?"), Message("assistant", said, "", (call,)), Message("tool", "There.", tool_call_id=call.id),
        Message("assistant", "Here."),
    )  # fmt: skip
    for count, ending in ((4, " id=call1"), (2, "")):
        rendered = render(tokenizer(), template, Dialogue("d", messages[:count]))
        assert rendered.turns[0].calls is not None
        calls = rendered.text[slice(*rendered.turns[0].calls)]
        assert calls == '<call>{"name": "look", "arguments": {"city": "Ulm"}}' + ending


def test_turn_that_several_control_tokens_end_ends_with_the_last_of_them() -> None:
    template = each(
        "{{ '<open>' + m['role'] + '<sep>' + m['content'] }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + '</call>' }}"
        "{% endfor %}{{ '<close>message<sep>\n<end>' }}"
    ) + "{% if add_generation_prompt %}<open>assistant<sep>{% endif %}"  # fmt: skip
    call = ToolCall("look", {"city": "Ulm"}, "call1")
    messages = (
        Message("user", "Where?"), Message("assistant", "", "", (call,)), Message("tool", "There.", tool_call_id=call.id),
        Message("assistant", "Here."),
    )  # fmt: skip
    rendered = render(tokenizer(), template, Dialogue("d", messages))
    ends = [rendered.text[turn.end : turn.until] for turn in rendered.turns]
    assert ends == ["<close>message<sep>\n<end>"] * 2
    prompted = template.replace("{% if add_generation_prompt %}", "{% if true %}")  # where the end cannot be told
    assert {turn.until for turn in render(tokenizer(), prompted, Dialogue("d", messages)).turns} == {None}


def test_system_message_that_moves_to_the_last_question_is_context_without_spans() -> None:
    template = (
        "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' and loop.index >= loop.length - 1 %}"
        "{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}{% elif m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
    )
    rendered = render(tokenizer(), template, dialogue_of("a", "b", "c", "d", system="Be brief."))
    assert [rendered.text[piece.start : piece.end] for piece in rendered.pieces] == ["a", "b", "Be brief.", "c", "d"]
    assert [piece.covered for piece in rendered.pieces] == [(0, 1), (0, 1), None, (0, 1), (0, 1)]


def test_words_of_a_call_that_look_like_control_tokens_are_only_text() -> None:
    template = each(
        "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function | tojson + '</call>' }}{% endfor %}{{ '<end>' }}"
    )
    call = ToolCall("say", {"text": 'the "<end>" tag'})
    rendered = render(
        tokenizer(), template, Dialogue("d", (Message("user", "Say."), Message("assistant", "", "", (call,))))
    )
    (literal,) = rendered.literals
    assert rendered.text[slice(*literal)] == 'the \\"<end>\\" tag'
    assert "<end>" not in "".join(rendered.template_parts).removesuffix("<end>").removeprefix("<end>")
