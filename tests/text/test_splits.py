"""Written dialogues beside held-out ones: near-duplicates, and all answers to a prompt on one side of the split."""

import pytest

from fusechat.text.dialogues import Dialogue, Message
from fusechat.text.splits import NearDuplicates, is_held_out, said_digest

LONG = "A farmer has twelve sheep and sells five of them at the market before noon; how many of them are left in the evening"


def exchange(asked: str, answer: str, dialogue_id: str = "d", system: str = "") -> Dialogue:
    head = (Message("system", system),) if system else ()
    return Dialogue(dialogue_id, (*head, Message("user", asked), Message("assistant", answer)))


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        (exchange("What colour is it?", "Blue."), exchange("what COLOUR is it", "Green."), True),
        (exchange("What colour is it?", "Blue."), exchange("What colour is it?", "Blue.", system="Be brief."), True),
        (exchange("What colour is it?", "Blue."), exchange("What colour is she?", "Blue."), False),
        (exchange("Bridge in Velan?", "It is vato."), exchange("River in Velan?", "It is vato."), False),
        (exchange(LONG, "Seven."), exchange(f"{LONG} then", "Seven."), True),
        (exchange(LONG, "Seven."), exchange(LONG.replace("five", "six").replace("market", "fair"), "Six."), False),
        (exchange("?!", "Blue."), exchange("...", "Blue."), True),  # no words but the answer's
        (exchange("?!", "Blue."), exchange("...", "Green."), False),
    ],
)
def test_near_duplicates(one: Dialogue, other: Dialogue, near: bool) -> None:
    assert NearDuplicates([exchange("Something else?", "Yes.", "x"), other]).of(one) == ("d" if near else None)


def test_all_answers_to_a_prompt_are_on_one_side() -> None:
    dialogues = [exchange(f"q{n}", f"r{n} {sample}", f"{n}.{sample}") for n in range(60) for sample in range(3)]
    sides = [split(dialogue, by_prompt=True) for dialogue in dialogues]
    held_out = {dialogue.messages[0].content for dialogue, side in zip(dialogues, sides, strict=True) if side}
    train = {dialogue.messages[0].content for dialogue, side in zip(dialogues, sides, strict=True) if not side}
    assert not train & held_out and len(train | held_out) == 60 and 8 < len(held_out) < 30
    apart = {(dialogue.messages[0].content, split(dialogue)) for dialogue in dialogues}
    assert len(apart) > 60  # some prompt has answers on both sides


def split(dialogue: Dialogue, *, by_prompt: bool = False) -> bool:
    return is_held_out(said_digest(dialogue, by_prompt=by_prompt), 0.3)
