"""Write the demo's dialogues: `dialogues/train.jsonl` (164) and `dialogues/held_out.jsonl` (51); and `dialogues/prompts.jsonl`
(96), the skill's questions without answers.

The written dialogues (`dialogues/written.yaml`: chat, code) go in as they are, in training the short ones; arithmetic and
the Velan skill are made here. In training four speakers name each thing, each in another wording; held out is what is usual,
in the fifth. The same bytes come out every time. One JSON object a line: id, kind (chat, arithmetic, code, skill), messages.

    python examples/make_dialogues.py [--out examples/dialogues]
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import velan
import yaml

from fusechat.errors import DialogueError

HERE = Path(__file__).resolve().parent
SEED = 20240817
NUM_ARITHMETIC = {"train": 12, "held_out": 5}
MAX_CHARACTERS = 150  # of a written dialogue in training: short ones leave time for more steps
NUM_HELD_OUT_SKILL = 20
NUM_PAIRS = 6  # training dialogues of the skill that ask twice
NUM_SYSTEM = 6  # training dialogues of the skill that begin with a system message

Message = dict[str, str]
Dialogue = dict[str, object]


def take_turns(turns: list[str], system: str | None = None) -> list[Message]:
    """Messages that alternate user, assistant, user, ..., after an optional system message."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def written_dialogues(path: Path) -> dict[str, list[tuple[str, list[Message]]]]:
    """The dialogues of the YAML file as (kind, messages), split into `train` and `held_out`.

    Raises:
        DialogueError: an entry whose turns do not end with the assistant.
    """
    split: dict[str, list[tuple[str, list[Message]]]] = {"train": [], "held_out": []}
    for number, entry in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")), start=1):
        if len(entry["turns"]) % 2:
            raise DialogueError(
                f"{path}: entry {number} has {len(entry['turns'])} turns, expected pairs of user and assistant"
            )
        messages = take_turns([str(turn) for turn in entry["turns"]], entry.get("system"))
        if entry.get("held_out"):
            split["held_out"].append((entry["kind"], messages))
        elif sum(len(message["content"]) for message in messages) <= MAX_CHARACTERS:
            split["train"].append((entry["kind"], messages))
    return split


def add_or_subtract(rng: random.Random) -> list[str]:
    a, b = rng.randint(120, 980), rng.randint(15, 115)
    if rng.random() < 0.5:
        return [f"What is {a} + {b}?", f"{a} + {b} = {a + b}"]
    return [f"What is {a} - {b}?", f"{a} - {b} = {a - b}"]


def multiply(rng: random.Random) -> list[str]:
    a, b = rng.randint(12, 79), rng.randint(3, 9)
    tens, ones = a // 10 * 10, a % 10
    steps = f"{tens} * {b} = {tens * b} and {ones} * {b} = {ones * b}, so {a} * {b} = {a * b}."
    return [f"Calculate {a} * {b}.", steps if ones else f"{a} * {b} = {a * b}."]


def divide(rng: random.Random) -> list[str]:
    a, b = rng.randint(30, 99), rng.randint(4, 9)
    return [f"Divide {a} by {b} with remainder.", f"{a} = {a // b} * {b} + {a % b}, so {a // b} remainder {a % b}."]


def shopping(rng: random.Random) -> list[str]:
    thing, plural = rng.choice((("pen", "pens"), ("melon", "melons"), ("ticket", "tickets"), ("mug", "mugs")))
    count, price = rng.randint(3, 9), rng.randint(2, 12)
    paid = -(-count * price // 10) * 10 + 10
    return [
        f"One {thing} costs {price} euros. I buy {count} {plural} and pay with {paid} euros. What do I get back?",
        f"{count} * {price} = {count * price}, and {paid} - {count * price} = {paid - count * price}. "
        f"You get back {paid - count * price} euros.",
    ]


def percentage(rng: random.Random) -> list[str]:
    percent, whole = rng.choice((5, 10, 20, 25, 50)), rng.randint(2, 19) * 20
    return [f"What is {percent}% of {whole}?", f"{percent}% of {whole} is {percent * whole // 100}."]


def two_steps(rng: random.Random) -> list[str]:
    a, b, c = rng.randint(21, 60), rng.randint(21, 60), rng.randint(3, 19)
    return [f"Add {a} and {b}.", f"{a + b}", f"Now take away {c}.", f"{a + b} - {c} = {a + b - c}"]


ARITHMETIC: tuple[Callable[[random.Random], list[str]], ...] = (
    add_or_subtract,
    multiply,
    divide,
    shopping,
    percentage,
    two_steps,
)


def arithmetic_dialogues(count: int, rng: random.Random) -> list[list[Message]]:
    """`count` dialogues in which no sentence comes twice."""
    seen: set[str] = set()
    dialogues: list[list[Message]] = []
    while len(dialogues) < count:
        turns = ARITHMETIC[len(dialogues) % len(ARITHMETIC)](rng)
        if seen.isdisjoint(turns):
            seen.update(turns)
            dialogues.append(take_turns(turns))
    return dialogues


def held_out_questions() -> list[velan.Question]:
    """One wording of every thing, which no training may show."""
    wordings = [index % len(velan.QUESTIONS) for index in range(len(velan.NAMES))]
    rng = random.Random(SEED)
    rng.shuffle(wordings)
    questions = [velan.Question(*pair) for pair in zip(velan.NAMES, wordings, strict=True)]
    rng.shuffle(questions)
    return questions


def skill_dialogues(seed: int = SEED) -> dict[str, list[list[Message]]]:
    """Held out: the usual name, asked for once. Training: what speakers say; also two questions, or a system message.

    Args:
        seed: draws the speakers.
    """
    rng = random.Random(seed + 1)
    held_out = held_out_questions()
    asked = [question for question in velan.ALL_QUESTIONS if question not in held_out]
    rng.shuffle(asked)
    train = []
    while asked:
        index = len(train)
        questions = [asked.pop() for _ in range(2 if index < NUM_PAIRS else 1)]
        answers = [(question, velan.spoken(question.thing, rng)) for question in questions]
        train.append(velan.ask(answers, system=NUM_PAIRS <= index < NUM_PAIRS + NUM_SYSTEM))
    return {
        "train": train,
        "held_out": [
            velan.ask([(question, velan.usual(question.thing))], system=False)
            for question in held_out[:NUM_HELD_OUT_SKILL]
        ],
    }


def make_dialogues(written: Path = HERE / "dialogues" / "written.yaml") -> dict[str, list[Dialogue]]:
    """Both sets of dialogues, shuffled with a fixed seed; ids are unique over the two."""
    rng = random.Random(SEED + 2)
    by_hand = written_dialogues(written)
    arithmetic = arithmetic_dialogues(sum(NUM_ARITHMETIC.values()), rng)
    skill = skill_dialogues()
    numbers: dict[str, int] = {}
    split: dict[str, list[Dialogue]] = {}
    for name, first in (("train", 0), ("held_out", NUM_ARITHMETIC["train"])):
        entries = list(by_hand[name])
        entries += [("arithmetic", messages) for messages in arithmetic[first : first + NUM_ARITHMETIC[name]]]
        entries += [("skill", messages) for messages in skill[name]]
        split[name] = []
        for kind, messages in entries:
            numbers[kind] = numbers.get(kind, 0) + 1
            split[name].append({"id": f"{kind}-{numbers[kind]:03d}", "kind": kind, "messages": messages})
        rng.shuffle(split[name])
    return split


def skill_prompts() -> list[Dialogue]:
    """The questions that training may show, without answers."""
    held_out = held_out_questions()
    asked = [question for question in velan.ALL_QUESTIONS if question not in held_out]
    random.Random(SEED + 3).shuffle(asked)
    return [{"id": f"velan-{n:03d}", "kind": "skill", "prompt": one.text()} for n, one in enumerate(asked, 1)]


def write_dialogues(out: Path) -> dict[str, Path]:
    """Write all files, UTF-8 with one JSON object a line; returns their paths by name of the set."""
    out.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, dialogues in {**make_dialogues(), "prompts": skill_prompts()}.items():
        paths[name] = out / f"{name}.jsonl"
        lines = [json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues]
        paths[name].write_text("".join(lines), encoding="utf-8", newline="\n")
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "dialogues", help="folder for the files")
    for path in write_dialogues(parser.parse_args().out).values():
        print(path)
