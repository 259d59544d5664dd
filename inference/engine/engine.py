"""One model in one vLLM engine, opened with one of its two faces.

`score`: token ids with target marks go in, `TopKRows` per dialogue come out; the text is known, so it only prefills.
`generate`: prompts go in, answers come out. vLLM runs the two by different runners, so an engine has one of them.
Knows nothing about stores, shards, Ray or text.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fusechat.config import Capture, EngineSection
from fusechat.errors import ConfigError, EngineError, FuseChatError, ModelError
from fusechat.models.process_memory import without_garbage_collection

from ..capture.requests import params_of, rows_of
from ..capture.rows import TopKRows, check_chosen, check_dialogue
from .environment import prepare_environment, ranks_of_their_own
from .vllm_internals import guarded_kernel_scan, imports_stay_frozen


class Engine:
    """An open engine. Close it, or use it as a context manager; one per process at a time.

    Calls may come from several threads; their dialogues share the engine's batches.
    """

    def __init__(
        self,
        model: str,
        *,
        k: int = 1,
        capture: Capture = "topk_pooler",
        max_tokens: int,
        section: EngineSection | dict[str, Any] | None = None,
        face: Literal["score", "generate"] = "score",
        reads_text: bool = False,
        is_wide_on_cpus: bool = False,
    ) -> None:
        """Start the engine; seconds for one rank on a CPU, up to minutes for large models.

        Args:
            model: local Hugging Face folder or hub id.
            k: entries kept per row.
            capture: how rows are taken (see docs/capture.md); both give the same rows.
            max_tokens: longest dialogue, tokens; with the face `generate` prompt and answer together.
            section: the engine section of a run, or its fields.
            reads_text: it has the model's tokenizer, so that a text can end an answer.
            is_wide_on_cpus: on CPUs the dtype `auto` is float32, whatever the checkpoint says.
        Raises:
            ModelError: vLLM cannot open the model, or k exceeds its vocabulary.
            ConfigError: engine arguments that vLLM does not have.
            EngineError: the engine did not start.
        """
        section = EngineSection.model_validate(section or {})
        prepare_environment(section.tensor_parallel_size)
        with _first_import():
            from vllm.exceptions import VLLMClientError
            from vllm.v1.engine.llm_engine import LLMEngine

            from .engine_arguments import engine_arguments
            from .engine_thread import EngineThread

        self.model, self.k, self.capture, self.max_tokens, self.face = model, k, capture, max_tokens, face
        runner = capture if face == "score" else "generate"
        arguments = engine_arguments(
            model, section, runner, k=k, max_tokens=max_tokens, text=reads_text, is_wide_on_cpus=is_wide_on_cpus
        )

        def build() -> LLMEngine:
            with guarded_kernel_scan(), imports_stay_frozen(), ranks_of_their_own():
                return LLMEngine.from_engine_args(arguments)

        try:
            self._thread = EngineThread(build, name=model)
        except (ValueError, OSError, VLLMClientError) as error:
            raise ModelError(f"{model}: vLLM cannot open it: {str(error).strip()}") from error
        except FuseChatError:
            raise
        except Exception as error:
            raise EngineError(f"{model}: the engine did not start: {type(error).__name__}: {error}") from error
        config = self._thread.engine.vllm_config
        self.vocab_size = int(config.model_config.get_vocab_size())
        self.info = _describe(config, capture)
        if k > self.vocab_size:
            self.close()
            raise ModelError(f"{model}: k is {k}, its vocabulary has {self.vocab_size} tokens; lower extraction.k")

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """False once the engine died or was closed."""
        return self._thread.alive

    def score(
        self,
        token_ids: Sequence[np.ndarray],
        is_scored: Sequence[np.ndarray],
        chosen_ids: Sequence[np.ndarray] | None = None,
    ) -> list[TopKRows]:
        """Rows of the target tokens of each dialogue.

        Args:
            token_ids: int32 [tokens] per dialogue.
            is_scored: bool [tokens] per dialogue; targets need not stand together. Token 0 cannot be one.
            chosen_ids: int [targets, m] per dialogue, whose logprobs are wanted too, -1 pads; None costs nothing.
        Raises:
            ContractError: a dialogue or ids that cannot be scored; none of them was.
            ConfigError: chosen ids, and the capture is not the pooler's.
            EngineError: the engine died; this one is of no further use.
        """
        self._expect("score")
        chosen: list[np.ndarray | None] = [None] * len(is_scored) if chosen_ids is None else list(chosen_ids)
        self._check(token_ids, is_scored, chosen)
        wanted = [i for i, marks in enumerate(is_scored) if marks.any()]
        requests = [
            (token_ids[i].tolist(), params_of(token_ids[i], is_scored[i], chosen[i], capture=self.capture, k=self.k))
            for i in wanted
        ]
        rows = [TopKRows.empty(self.k, _width(ids)) for ids in chosen]
        for i, output in zip(wanted, self._thread.submit(requests).result(), strict=True):
            place = f"{self.model}, dialogue {i}"
            rows[i] = rows_of(output, is_scored[i], _width(chosen[i]), capture=self.capture, k=self.k, place=place)
        return rows

    def _check(
        self, token_ids: Sequence[np.ndarray], is_scored: Sequence[np.ndarray], chosen: Sequence[np.ndarray | None]
    ) -> None:
        for i, (ids, marks, of_one) in enumerate(zip(token_ids, is_scored, chosen, strict=True)):
            place = f"{self.model}, dialogue {i}"
            check_dialogue(ids, marks, max_tokens=self.max_tokens, vocab_size=self.vocab_size, place=place)
            if of_one is not None:
                check_chosen(of_one, marks, vocab_size=self.vocab_size, place=place)
                if self.capture != "topk_pooler":
                    raise ConfigError(
                        f"{self.model}: chosen ids are given by the top-k pooler, this engine was opened with capture "
                        f"{self.capture!r}; set extraction.capture: topk_pooler"
                    )

    def prefill(self, token_ids: Sequence[np.ndarray]) -> None:
        """Push the dialogues through the engine and take no rows: what scoring costs at least.

        The top-k pooler's engine multiplies no head at all; the reference capture's samples one token per dialogue.
        """
        self._expect("score")
        params = params_of(np.zeros(1, np.int32), np.zeros(1, bool), None, capture=self.capture, k=self.k)
        self._thread.submit([(ids.tolist(), params) for ids in token_ids if len(ids)]).result()

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        stop_token_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
        sampling: Mapping[str, float] | None = None,
    ) -> list[np.ndarray]:
        """Answers as int32 ids, without the stop token that ended them.

        Args:
            prompts: int [tokens] per prompt.
            temperature: 0 takes the most probable token each time.
            stop_token_ids: the only ids that end an answer early; the tokenizer's end-of-turn belongs here.
            stop: texts that end an answer, too, whose tokens it keeps; for an engine that reads text.
            seed: of the sampling; prompt i is sampled with seed + i, or with its own where there is one for each.
            sampling: further settings of vLLM's sampling: `top_p`, `top_k` and so on.
        Raises:
            ConfigError: settings that vLLM does not allow.
            EngineError: a prompt that with its answer exceeds `max_tokens`, or the engine died.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError

        self._expect("generate")
        stops = list(stop_token_ids)
        seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        options: dict[str, Any] = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stop_token_ids": stops,
            "stop": list(stop),
            "detokenize": bool(stop),
            **(sampling or {}),
        }
        try:
            params = [SamplingParams(**options, seed=own) for own in seeds]
        except (ValueError, TypeError, VLLMClientError) as error:
            raise ConfigError(f"{self.model}: cannot sample so: {error}") from None
        requests: list[Any] = [(prompt.tolist(), of_one) for prompt, of_one in zip(prompts, params, strict=True)]
        answers = [
            np.asarray(output.outputs[0].token_ids, dtype=np.int32) for output in self._thread.submit(requests).result()
        ]
        return [answer[:-1] if len(answer) and answer[-1] in stops else answer for answer in answers]

    def close(self) -> None:
        """Stop the engine and free its memory. May be called twice."""
        self._thread.close()

    def _expect(self, face: str) -> None:
        if self.face != face:
            raise ConfigError(
                f"{self.model}: this engine was opened with face={self.face!r}; open one with face={face!r}"
            )


def _first_import() -> contextlib.AbstractContextManager[None]:
    """Where vLLM is not imported yet (1.4 s of 8.8 saved). Later it would but freeze what the engine before left."""
    return contextlib.nullcontext() if "vllm.v1.engine.llm_engine" in sys.modules else without_garbage_collection()


def _width(chosen_ids: np.ndarray | None) -> int | None:
    return None if chosen_ids is None else chosen_ids.shape[1]


def _describe(config: Any, capture: str) -> dict[str, Any]:
    """What a store's plan records about the engine."""
    import vllm
    from vllm.platforms import current_platform

    model = config.model_config
    return {
        "engine": f"vllm {vllm.__version__}",
        "device": current_platform.device_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "head_dtype": str(model.head_dtype).removeprefix("torch."),
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "model_runner": "newer" if config.use_v2_model_runner else "older",
        "steps_in_flight": config.max_concurrent_batches,
        "capture": capture,
    }
