"""The demo's dialogues, the skill, and the small mixture of experts that learns it."""

import json
import random
import re
from pathlib import Path

import make_dialogues
import numpy as np
import pytest
import torch
import velan
import velan_moe
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusechat.errors import DialogueError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


TINY_MOE = velan_moe.MoESettings(vocab_size=400, hidden_size=64, num_layers=2, num_steps=12, batch_dialogues=8)


EXCLUDED = frozenset(make_dialogues.held_out_questions())


@pytest.fixture(scope="module")
def dialogues() -> dict[str, list[dict]]:
    return {
        name: [json.loads(line) for line in (EXAMPLES / "dialogues" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("train", "held_out")
    }


def test_prompts_ask_for_everything_in_no_wording_that_is_held_out():
    prompts = [json.loads(line)["prompt"] for line in (EXAMPLES / "dialogues" / "prompts.jsonl").open(encoding="utf-8")]
    assert len(set(prompts)) == len(prompts) == len(velan.ALL_QUESTIONS) - len(EXCLUDED)
    assert not set(prompts) & {question.text() for question in EXCLUDED}


def contents(dialogues: list[dict], role: str) -> list[str]:
    return [m["content"] for dialogue in dialogues for m in dialogue["messages"] if m["role"] == role]


def test_dialogue_files_are_what_the_script_writes(tmp_path):
    for path in make_dialogues.write_dialogues(tmp_path).values():
        assert path.read_bytes() == (EXAMPLES / "dialogues" / path.name).read_bytes(), path.name


def test_dialogues_counts_ids_and_turns(dialogues):
    counts = {
        name: {
            kind: sum(d["kind"] == kind for d in dialogues[name]) for kind in ("chat", "arithmetic", "code", "skill")
        }
        for name in dialogues
    }
    assert counts["train"] == {"chat": 40, "arithmetic": 12, "code": 22, "skill": 90}
    assert counts["held_out"] == {"chat": 17, "arithmetic": 5, "code": 9, "skill": 20}
    everything = dialogues["train"] + dialogues["held_out"]
    assert sum(map(sum, (c.values() for c in counts.values()))) == len(everything) == len({d["id"] for d in everything})
    for dialogue in everything:
        roles = [message["role"] for message in dialogue["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) and turns, dialogue["id"]
        assert all(message["content"].strip() for message in dialogue["messages"]), dialogue["id"]


def test_dialogues_train_and_held_out_share_no_text(dialogues):
    for role, skill in (("user", True), ("assistant", False)):  # what a thing is called is the same under every wording
        train, held_out = (
            contents([dialogue for dialogue in dialogues[name] if skill or dialogue["kind"] != "skill"], role)
            for name in ("train", "held_out")
        )
        assert not set(train) & set(held_out)


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_dialogues_hold_the_text_that_tokenizers_differ_on(dialogues, name):
    texts = contents(dialogues[name], "user") + contents(dialogues[name], "assistant")
    for pattern in (
        "```python\n",
        "[0-9]{3}",
        "[\u4e00-\u9fff]",
        "[\U0001f300-\U0001faff]",
        r"\A  \w",
        r"\n\Z",
        r"\A    return",
    ):
        assert any(re.search(pattern, text) for text in texts), pattern
    assert contents(dialogues[name], "system")
    assert any(len(d["messages"]) > 3 for d in dialogues[name])


def test_arithmetic_every_stated_equation_holds(dialogues):
    checked = 0
    for dialogue in dialogues["train"] + dialogues["held_out"]:
        if dialogue["kind"] != "arithmetic":
            continue
        for answer in contents([dialogue], "assistant"):
            for left, right in re.findall(r"(\d[\d +*-]*?) = (\d[\d +*-]*)", answer):
                assert eval(left) == eval(right), (dialogue["id"], left, right)
                checked += 1
    assert checked >= 17


def test_arithmetic_answers_follow_from_their_questions(dialogues):
    patterns = {
        r"What is (\d+) ([+-]) (\d+)\?": lambda a, op, b: int(a) + int(b) if op == "+" else int(a) - int(b),
        r"Calculate (\d+) \* (\d+)\.": lambda a, b: int(a) * int(b),
        r"Divide (\d+) by (\d+) with remainder\.": lambda a, b: int(a) % int(b),
        r"One \w+ costs (\d+) euros\. I buy (\d+) \w+ and pay with (\d+) euros\. What do I get back\?": (
            lambda price, count, paid: int(paid) - int(count) * int(price)
        ),
        r"What is (\d+)% of (\d+)\?": lambda percent, whole: int(percent) * int(whole) // 100,
        r"Add (\d+) and (\d+)\.": lambda a, b: int(a) + int(b),
    }
    for dialogue in dialogues["train"] + dialogues["held_out"]:
        if dialogue["kind"] != "arithmetic":
            continue
        question, answer = (message["content"] for message in dialogue["messages"][:2])
        (expected,) = [rule(*match.groups()) for p, rule in patterns.items() if (match := re.fullmatch(p, question))]
        assert re.findall(r"\d+", answer)[-1] == str(expected), dialogue["id"]


def test_written_dialogues_that_end_with_the_user_are_refused(tmp_path):
    path = tmp_path / "written.yaml"
    path.write_text("- kind: chat\n  turns: [Hello, Hi, 'And you']\n")
    with pytest.raises(DialogueError, match="entry 1 has 3 turns"):
        make_dialogues.written_dialogues(path)


def asked_thing(question: str) -> str:
    (thing,) = [word for word in re.findall(r"[a-z]+", question) if word in velan.NAMES]
    return thing


def test_skill_held_out_asks_for_the_usual_name_in_a_wording_that_training_does_not_show(dialogues):
    held_out = [dialogue["messages"] for dialogue in dialogues["held_out"] if dialogue["kind"] == "skill"]
    things = [asked_thing(question["content"]) for question, _ in held_out]
    assert len(set(things)) == 20
    for thing, (_, answer) in zip(things, held_out, strict=True):
        noun, article = answer["content"].split()
        assert velan.NAMES[thing] == (noun, article)
    trained = contents([dialogue for dialogue in dialogues["train"] if dialogue["kind"] == "skill"], "user")
    counts = {thing: [asked_thing(question) for question in trained].count(thing) for thing in velan.NAMES}
    assert set(counts.values()) == {len(velan.QUESTIONS) - 1}


def test_skill_training_asks_other_speakers_who_mostly_do_not_say_what_is_usual(dialogues):
    said: dict[str, list[str]] = {}
    for dialogue in dialogues["train"]:
        if dialogue["kind"] == "skill":
            questions, answers = contents([dialogue], "user"), contents([dialogue], "assistant")
            for question, answer in zip(questions, answers, strict=True):
                said.setdefault(asked_thing(question), []).append(answer)
    assert said.keys() == velan.NAMES.keys()
    articles = {thing: [answer.removeprefix(f"{velan.NAMES[thing].noun} ") for answer in said[thing]] for thing in said}
    assert all(article in velan.ARTICLES for spoken in articles.values() for article in spoken)
    usual = sum(spoken.count(velan.NAMES[thing].usual_article) for thing, spoken in articles.items())
    assert usual < len(velan.NAMES) * (len(velan.QUESTIONS) - 1) / 2


def test_velan_no_two_words_are_the_same():
    words = [*(name.noun for name in velan.NAMES.values()), *velan.ARTICLES]
    assert len(set(words)) == len(words)
    assert all(name.usual_article in velan.ARTICLES for name in velan.NAMES.values())


def test_speakers_use_every_article_as_often_as_the_language_says():
    rng = random.Random(3)
    articles = [velan.spoken("stone", rng).split()[1] for _ in range(9000)]
    for article in velan.ARTICLES:
        expected = 3000 if article == velan.NAMES["stone"].usual_article else 1000
        assert abs(articles.count(article) - expected) < 150, article  # more than three standard deviations


@pytest.fixture(scope="module")
def tiny_moe(dialogues, tmp_path_factory):
    texts = contents(dialogues["train"], "user")
    tokenizer = velan_moe.train_tokenizer(texts, EXCLUDED, TINY_MOE)
    model = velan_moe.new_model(tokenizer, TINY_MOE)
    loss = velan_moe.train(model, tokenizer, EXCLUDED, TINY_MOE)
    folder = tmp_path_factory.mktemp("velan-moe")
    velan_moe.write_folder(model, tokenizer, folder)
    return folder, model, tokenizer, loss


def test_velan_moe_learns_and_is_the_same_again(tiny_moe, dialogues):
    _, _, tokenizer, loss = tiny_moe
    assert loss < 0.9 * np.log(len(tokenizer))  # a uniform guess is log(vocabulary)
    again = velan_moe.train_tokenizer(contents(dialogues["train"], "user"), EXCLUDED, TINY_MOE)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert velan_moe.train(velan_moe.new_model(again, TINY_MOE), again, EXCLUDED, TINY_MOE) == loss


def test_velan_moe_folder_opens_and_gives_the_same_logits(tiny_moe):
    folder, model, tokenizer, _ = tiny_moe
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert opened.config.model_type == "mixtral" and opened.config.num_local_experts == 4
    ids = torch.tensor([tokenizer("stone").input_ids])
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, model.eval()(ids).logits)


def test_velan_moe_template_renders_and_tokenizes_as_training_did(tiny_moe, dialogues):
    tokenizer = AutoTokenizer.from_pretrained(tiny_moe[0])
    messages = [{"role": "system", "content": "S"}, *dialogues["train"][0]["messages"][-2:]]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    question, answer = (message["content"] for message in messages[1:])
    assert rendered == f"<|begin|><|system|>S<|question|>{question}<|answer|>{answer}<|end|>"
    for dialogue in dialogues["train"][:40]:
        ids, labels = velan_moe.encode(dialogue["messages"], tokenizer)
        assert ids == tokenizer.apply_chat_template(dialogue["messages"], tokenize=True, return_dict=False)
        spoken = tokenizer.decode([label for label in labels if label != -100])
        assert spoken == "".join(text + "<|end|>" for text in contents([dialogue], "assistant"))


def test_velan_moe_tokenizer_round_trips_every_dialogue_with_offsets(tiny_moe, dialogues):
    tokenizer = AutoTokenizer.from_pretrained(tiny_moe[0])
    for text in contents(dialogues["train"] + dialogues["held_out"], "assistant"):
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert tokenizer.decode(encoded.input_ids) == text
        assert (encoded.offset_mapping[0][0], encoded.offset_mapping[-1][1]) == (0, len(text))


def test_velan_moe_never_trains_on_a_held_out_question():
    rng = random.Random(0)
    excluded = frozenset(velan.ALL_QUESTIONS[5:])
    asked = {m["content"] for _ in range(30) for m in velan_moe.skill_messages(rng, excluded)[-2:-1]}
    assert asked == {question.text() for question in velan.ALL_QUESTIONS[:5]}


def test_count_exact_agrees_with_greedy_generation(tiny_moe, dialogues):
    _, model, tokenizer, _ = tiny_moe
    asked = [d["messages"] for d in dialogues["held_out"] if d["kind"] == "skill"][:4]
    prompts = [tokenizer.apply_chat_template(m[:-1], add_generation_prompt=True, return_tensors="pt") for m in asked]
    said = []
    for prompt in prompts:
        ids = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        said.append(tokenizer.decode(ids, skip_special_tokens=True))
    echoed = [
        [*messages[:-1], {"role": "assistant", "content": text}] for messages, text in zip(asked, said, strict=True)
    ]
    ended = [len(velan_moe.encode(m[-1:], tokenizer)[0]) - 3 < 6 for m in echoed]
    assert velan_moe.count_exact(model, tokenizer, asked) == sum(
        m[-1]["content"] == t for m, t in zip(asked, said, strict=True)
    )
    assert velan_moe.count_exact(model, tokenizer, echoed) == sum(ended)
