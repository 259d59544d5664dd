"""The records: an answer to a prompt, and the verdict of a rule on it. Plain data, also as lines of files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusechat.text.dialogues import Message
from fusechat.text.message_reading import read_message


@dataclass(frozen=True)
class Answer:
    """What a writer answered to one prompt.

    `messages`: the assistant's, one for each turn that was asked; `fault`: why it is no whole answer, "": it is one;
    `shown`: the text of what could not be read, for people. `logprobs`: scorer (never the writer) -> mean logprob of the
    answer, nats per byte; `score`: the judge's, 1 to 10, None where there is none.
    """

    writer: str
    sample: int
    messages: tuple[Message, ...]
    fault: str = ""
    shown: str = ""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None

    @property
    def text(self) -> str:
        """The content of its last message; of one that could not be read, what is shown of it."""
        return self.messages[-1].content if self.messages and not self.fault else self.shown

    def to_row(self) -> dict[str, Any]:
        """As `from_row` reads it."""
        row = {"writer": self.writer, "sample": self.sample, "messages": [one.to_row() for one in self.messages]}
        extras = {"fault": self.fault, "shown": self.shown, "logprobs": dict(self.logprobs), "score": self.score}
        return {**row, **{key: value for key, value in extras.items() if value}}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Answer":
        """The answer of a row that `to_row` made."""
        messages = tuple(read_message(message, "answer") for message in row["messages"])
        return cls(
            row["writer"], row["sample"], messages, row.get("fault", ""), row.get("shown", ""), row.get("logprobs", {}),
            row.get("score"),
        )  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is kept, why not (a few words, the same for all alike), and how good it is (more is better)."""

    is_kept: bool
    reason: str = ""
    score: float = 0.0


def kept(score: float = 0.0) -> Verdict:
    """The verdict on an answer that may become a dialogue."""
    return Verdict(True, "", score)


def refused(reason: str, score: float = 0.0) -> Verdict:
    """The verdict on one that may not."""
    return Verdict(False, reason, score)
