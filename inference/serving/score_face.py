"""The face of an engine that gives rows: the body of a request in, the body of a reply out.

Knows nothing about Ray or HTTP beyond bodies, content types and a status.
"""

import json
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusechat.errors import ContractError, EngineError, FuseChatError, UserError
from fusechat.models import model_files
from fusechat.models.process_memory import give_memory_back, without_garbage_collection

from ..capture.rows import TopKRows
from ..engine.engine_settings import with_backend
from .faces import Face
from .scoring_records import ScoreReply, ScoreRequest
from .turns import Turns
from .wire import BINARY, JSON, read_request, write_reply

log = logging.getLogger(__name__)

PROBES = (
    ("How many days has a week?", "A week has seven days: Monday to Sunday."),
    ("Write a function that adds two numbers.", "def add(a, b):\n    return a + b\n"),
    ("Say it in German: good morning.", "Guten Morgen! \U0001f600"),
    ("What is 17 + 25?", "17 + 25 = 42, because 17 + 20 = 37 and 37 + 5 = 42."),
)
"""What the self-check of an engine that stays is about: it has no dialogues of a run."""
LARGE_BODY = 2**20
"""Bytes of a reply after which the process gives memory back to the system."""


@dataclass(frozen=True)
class Reply:
    """What goes back to a client."""

    status: int
    content_type: str
    body: bytes
    rows: int = 0
    tokens: int = 0
    """Of the dialogues that were scored."""


class ScoreFace:
    """An open engine that reads requests; calls may come from many threads."""

    def __init__(self, face: Face, executor_backend: str | None = None) -> None:
        """Start the engine and let it prove itself.

        Args:
            executor_backend: who starts the further ranks, in vLLM's words; None: the engine decides.
        Raises:
            FuseChatError: as `Engine` and `check_engine`.
        """
        with without_garbage_collection():
            from fusechat.text.chat_template import load_tokenizer
            from fusechat.text.rendered import ChatTemplate

            from ..engine.engine import Engine
            from ..self_check import check_engine

        self.face, self._turns = face, Turns()
        self._folder = folder = str(model_files.resolve_model(face.model))
        self._tokenizer, _ = load_tokenizer(folder, template=face.template)
        self._template = ChatTemplate(face.template, face.model.template_arguments)
        engine = with_backend(face.model.engine, executor_backend)
        self._engine = Engine(folder, k=face.k, capture=face.capture, max_tokens=face.max_tokens, section=engine)
        self._on_cpu = self._engine.info["device"] == "cpu"
        self.self_check: dict[str, Any] = {}
        if face.self_check_dialogues:
            rows = [_probe(*one) for one in PROBES[: face.self_check_dialogues]]
            ids, marks = self._tokenize(rows)
            self.self_check = check_engine(self._engine, ids, marks, model_folder=folder)

    @property
    def alive(self) -> bool:
        """False once the engine died."""
        return self._engine.alive

    def about(self) -> dict[str, Any]:
        """What the engine is, as plain values."""
        return {**self._engine.info, "vocab_size": self._engine.vocab_size}

    def answer(self, body: bytes, content_type: str, accept: str) -> Reply:
        """Score the dialogues of a request.

        Raises:
            EngineError: the engine died; this face is of no further use.
        """
        try:
            request = read_request(body, content_type)
            reply = self._score(request)
        except RecipeError as error:
            return refusal(409, str(error))
        except (UserError, EngineError) as error:
            if not self.alive:
                raise
            return refusal(400, str(error).replace(self._folder, self.face.name))
        in_json = JSON in accept or (content_type.startswith(JSON) and BINARY not in accept)
        data, kind = write_reply(reply, in_json=in_json)
        if self._on_cpu and len(data) > LARGE_BODY:
            give_memory_back()
        return Reply(200, kind, data, sum(map(len, reply.rows)), sum(map(len, reply.token_ids)))

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _score(self, request: ScoreRequest) -> ScoreReply:
        face = self.face
        if request.recipe and request.recipe != face.recipe:
            raise RecipeError(
                f"{face.name}: this engine's recipe is {face.recipe}, the request wants {request.recipe}; another recipe is "
                "another engine: serve it, or leave `recipe` out"
            )
        k = face.k if request.k is None else request.k
        if k > face.k:
            raise ContractError(f"k: found {k}, this engine keeps {face.k} entries per row; ask for at most so many")
        if max(len(request.messages), len(request.token_ids)) > face.max_dialogues:
            raise ContractError(f"found more than {face.max_dialogues} dialogues in a request; send them in several")
        ids, marks = (request.token_ids, request.is_scored)
        if request.messages:
            read = self._tokenize(list(request.messages))
            ids, marks = tuple(read[0]), tuple(read[1])
        if request.chosen_ids is not None and len(request.chosen_ids) != len(ids):
            raise ContractError(f"chosen_ids are given for {len(request.chosen_ids)} examples, expected {len(ids)}")
        with self._turns.take(alone=request.alone and self._on_cpu):
            rows = self._engine.score(ids, marks, request.chosen_ids)
        return ScoreReply(face.name, face.recipe, ids, marks, tuple(cut(part, k) for part in rows))

    def _tokenize(self, rows: list[dict[str, Any]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        from fusechat.text.examples import tokenize_rows

        parts = [part for _, part in tokenize_rows(self._tokenizer, self._template, rows)]
        return [part.token_ids for part in parts], [part.is_scored for part in parts]


class RecipeError(FuseChatError):
    """The client wants rows of another recipe."""


def cut(rows: TopKRows, k: int) -> TopKRows:
    """The first k entries of each row."""
    if k == rows.k:
        return rows
    return replace(rows, topk_ids=rows.topk_ids[:, :k], topk_logprobs=rows.topk_logprobs[:, :k])


def refusal(status: int, message: str, kind: str = "invalid_request_error") -> Reply:
    """An error in OpenAI's form."""
    fields = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return Reply(status, "application/json", json.dumps(fields).encode())


def _probe(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
