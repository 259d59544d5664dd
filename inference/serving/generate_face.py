"""The face of an engine that gives answers, in OpenAI's protocol: vLLM's own application, without a socket.

Goes in: a path and the body of a request. Comes out: a head, then pieces of the body as they are written. Knows nothing about
Ray. One engine in a process of its own, because vLLM's asynchronous engine has no other kind.
"""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fusechat.models import model_files
from fusechat.models.process_memory import without_garbage_collection

from ..engine.engine_settings import with_backend
from ..engine.environment import prepare_environment, ranks_of_their_own
from ..engine.vllm_internals import guarded_kernel_scan
from .faces import Face

PATHS = ("/v1/chat/completions", "/v1/completions")
MAX_LOGPROBS = 20
"""Most logprobs beside each token, as in OpenAI's protocol."""


@dataclass(frozen=True)
class Head:
    """The beginning of a reply."""

    status: int
    content_type: str


class GenerateFace:
    """An engine under vLLM's own server; `start` it within the event loop that will ask it."""

    def __init__(self, face: Face, executor_backend: str | None = None) -> None:
        self.face, self._backend = face, executor_backend
        self._engine: Any = None
        self._app: Any = None

    async def start(self) -> None:
        """Start engine and application.

        Raises:
            FuseChatError: the model cannot be opened, or the engine's arguments are none.
        """
        face = self.face
        prepare_environment(face.model.engine.tensor_parallel_size)
        with without_garbage_collection():
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.entrypoints.launchers.api_server.app_state import init_app_state
            from vllm.entrypoints.launchers.app import build_app
            from vllm.entrypoints.launchers.cli_args import make_arg_parser
            from vllm.utils.argparse_utils import FlexibleArgumentParser
            from vllm.v1.engine.async_llm import AsyncLLM

            from ..engine.engine_arguments import engine_arguments

        folder = str(model_files.resolve_model(face.model))
        section = with_backend(face.model.engine, self._backend)
        given = engine_arguments(folder, section, "generate", k=MAX_LOGPROBS, max_tokens=face.max_tokens, text=True)
        arguments = AsyncEngineArgs(**{field.name: getattr(given, field.name) for field in fields(given)})
        with guarded_kernel_scan(), ranks_of_their_own():
            self._engine = AsyncLLM.from_engine_args(arguments)
        parser = make_arg_parser(FlexibleArgumentParser())  # type: ignore[no-untyped-call]
        options = parser.parse_args([])
        options.model, options.served_model_name = folder, [face.name]
        options.disable_log_stats = options.disable_fastapi_docs = True
        options.default_chat_template_kwargs = face.model.template_arguments
        options.chat_template = _template_file(face.template)
        tasks = await self._engine.get_supported_tasks()
        self._app = build_app(options, tasks, self._engine.model_config)
        await init_app_state(self._engine, self._app.state, options, tasks)

    @property
    def alive(self) -> bool:
        """False once the engine died."""
        return self._engine is not None and not self._engine.errored

    def about(self) -> dict[str, Any]:
        """What the engine is, as plain values."""
        import vllm
        from vllm.platforms import current_platform

        config = self._engine.model_config
        return {
            "engine": f"vllm {vllm.__version__}",
            "device": current_platform.device_type,
            "dtype": str(config.dtype).removeprefix("torch."),
        }

    async def answer(self, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        """Answer one request; whoever stops reading ends it.

        Yields:
            the head, then the body as it is written.
        """
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=16)
        call = asyncio.create_task(_call(self._app, path, body, messages))
        try:
            while True:
                message = await messages.get()
                if message["type"] == "http.response.start":
                    headers = dict(message["headers"])
                    yield Head(message["status"], headers.get(b"content-type", b"application/json").decode())
                    continue
                if message.get("body"):
                    yield message["body"]
                if not message.get("more_body"):
                    return
        finally:
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call

    def close(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.shutdown()


async def _call(app: Any, path: str, body: bytes, messages: "asyncio.Queue[dict[str, Any]]") -> None:
    """One request to an ASGI application; whatever it raises ends in a reply of status 500."""
    body_given = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if body_given.is_set():
            await asyncio.Event().wait()  # the caller leaves by cancelling
        body_given.set()
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }  # fmt: skip
    begun = False

    async def send(message: dict[str, Any]) -> None:
        nonlocal begun
        begun = True
        await messages.put(message)

    try:
        await app(scope, receive, send)
    except Exception as error:
        if not begun:
            await messages.put({"type": "http.response.start", "status": 500, "headers": []})
        text = json.dumps(
            {"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error", "code": 500}}
        )
        await messages.put({"type": "http.response.body", "body": text.encode(), "more_body": False})


def _template_file(text: str) -> str:
    """A file with the template: vLLM takes text with line breaks as it is, but a template may have none."""
    with tempfile.NamedTemporaryFile("w", suffix=".jinja", prefix="fusechat-", delete=False, encoding="utf-8") as file:
        file.write(text)
    return str(Path(file.name))
