"""Shared by all tests: tiny models built once, dialogues, and a run file over them."""

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from tiny_runs import tiny_run, torch_threads

from fusechat.models.process_memory import without_garbage_collection

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two processes run the tests, so the cores are taken. More threads would wait for each other, and OpenMP's spin meanwhile:
# a quarter of all the time. What runs in several threads is tested with so many.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process per training job that no test needs.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

# The same examples in every run; `pytest --hypothesis-profile=default` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

TESTS = Path(__file__).parent
DURATIONS = TESTS / "durations.json"
"""File of tests -> seconds, as `pytest --record-durations` wrote them: the longest begin first, or the last of them would leave
the second process idle."""


_collecting = contextlib.ExitStack()
_collecting.enter_context(without_garbage_collection())  # collecting the tests imports everything


def pytest_collection_finish() -> None:
    _collecting.close()


def pytest_unconfigure() -> None:
    _collecting.close()  # a process that lets others collect comes here alone


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help=f"write {DURATIONS.name}, of all tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seconds = json.loads(DURATIONS.read_text(encoding="utf-8"))
    items.sort(key=lambda item: -seconds.get(item.path.relative_to(TESTS).as_posix(), 0.0))


TOGETHER = {"tests/cluster/test_service_runs.py": "tests/cluster/test_service.py"}
"""Files of tests that are run by the process that runs another: they share a service, whose engines take half a minute to start."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file at a time, as `--dist loadfile`, or those that belong together."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


_seconds: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.location[0].removeprefix("tests/")] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--record-durations") and not hasattr(session.config, "workerinput"):
        whole = {name: round(value) for name, value in sorted(_seconds.items()) if value >= 1}
        DURATIONS.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def logs_to_no_closed_file() -> Iterator[None]:
    """A command that a test calls logs to standard error as it is then, which is closed after the test: whatever logs later, a
    finalizer within another's call too, would fail there and print a traceback."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:
        root.removeHandler(handler)
    logging.getLogger("fusechat").setLevel(logging.NOTSET)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For what is computed in several threads at once."""
    with torch_threads(2):
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder: `llama` (ChatML) and `mixtral` (plain template, another tokenizer)."""
    import tiny_models as build

    base = tmp_path_factory.mktemp("models")
    return {"llama": build.save_llama(base / "llama"), "mixtral": build.save_mixtral(base / "mixtral")}


@pytest.fixture(scope="session")
def dialogue_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training and held-out dialogues in the own form: prose, digits, code, other scripts, several turns."""
    base = tmp_path_factory.mktemp("dialogues")
    files = {"train": base / "train.jsonl", "held_out": base / "held_out.jsonl"}
    for split, file in files.items():
        shift = 0 if split == "train" else 1000
        file.write_text(
            "".join(json.dumps(_dialogue(shift + i), ensure_ascii=False) + "\n" for i in range(14)), encoding="utf-8"
        )
    return files


def _dialogue(number: int) -> dict:
    ask, answer = [
        (f"How many apples are {number} + 4?", f"{number} + 4 = {number + 4}, so there are {number + 4} apples."),
        (f"What colour is sky {number}?", " Blue \U0001f600, 蓝色."),
        (f"Write add{number}.", f"```python\ndef add{number}(a, b):\n    return a + b\n```\n"),
        (f"Say hello, number {number}.", "Hello! How are you today?"),
    ][number % 4]
    messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    if number % 5 == 0:
        messages += [
            {"role": "user", "content": "And the lazy dog?"},
            {"role": "assistant", "content": "It sleeps for 12 hours."},
        ]
    if number % 7 == 0:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    return {"id": f"d{number}", "kind": ["arithmetic", "chat", "code", "chat"][number % 4], "messages": messages}


@pytest.fixture
def run_file(tmp_path: Path, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]) -> Path:
    """A run file over the tiny models; its output is below the test's own folder."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run(tmp_path / "out", tiny_models, dialogue_files)), encoding="utf-8")
    return path
