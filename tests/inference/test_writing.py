"""Writing by real engines in this process: seeds, resuming, turns, faults; and that the same seed gives the same answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from word_models import save_word_model
from writing_runs import write_prompts_artifact

from fusechat.config import ClusterSection, ModelSection
from fusechat.config.layout import RunLayout
from fusechat.config.writing import WritingSection
from fusechat.errors import ArtifactError
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.work import run_here
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.prompts import Prompt, prompt_of
from fusechat.text.rendered import ChatTemplate
from inference.writing import stage
from inference.writing.answers import Answer
from inference.writing.stage import Writer

SHARES = {"Blue": 0.6, "Green": 0.25, "Red": 0.15}
PROMPTS = [prompt_of(row, f"p{n}") for n, row in enumerate(["What colour?", "And now?", {"turns": ["One.", "Two."]}])]
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_model(tmp_path_factory.mktemp("writers") / "colours", SHARES)


def writer_of(folder: Path, tmp_path: Path, name: str = "colours") -> Writer:
    model = ModelSection(name=name, model=str(folder), engine={"kv_cache_gib": 0.05})
    return Writer(resolve(model, tmp_path / "digests.json"), ChatTemplate(load_tokenizer(str(folder))[1]))


def answers_of(
    layout: RunLayout, writer: Writer, section: WritingSection, prompts: list[Prompt] = PROMPTS, seed: int = 0
) -> list[list[Answer]]:
    write_prompts_artifact(layout, prompts)
    run_here(stage.prepare(layout, [writer], section, ClusterSection(), seed=seed), QUIET)
    return list(stage.saved_answers(layout.written_answers_path(writer.model.name)))


def said(answers: list[list[Answer]]) -> list[list[list[str]]]:
    return [[[message.content for message in one.messages] for one in of_prompt] for of_prompt in answers]


def test_same_seed_gives_the_same_answers_however_the_prompts_are_cut(folder: Path, tmp_path: Path) -> None:
    section = WritingSection(samples=8, temperature=1.0, max_new_tokens=8)
    writer = writer_of(folder, tmp_path)

    def layout(name: str) -> RunLayout:
        return RunLayout(tmp_path / name, str(tmp_path / name), {})

    whole = answers_of(layout("whole"), writer, section)
    assert [[len(one.messages) for one in of_prompt] for of_prompt in whole] == [[1] * 8, [1] * 8, [2] * 8]
    counts = artifact.load(layout("whole").written_answers_path("colours"), "answers").counts
    assert counts == {"answers": 24, "whole": 24, "tokens": 32}
    drawn = {text for of_prompt in said(whole) for texts in of_prompt for text in texts}
    assert drawn == set(SHARES)  # 32 draws; the rarest is missing once in 180 seeds
    alone = answers_of(layout("alone"), writer, section.model_copy(update={"chunk_prompts": 1}), PROMPTS[::-1])
    assert said(alone) == said(whole)[::-1]
    assert said(answers_of(layout("other"), writer, section, seed=1)) != said(whole)
    renamed = writer_of(folder, tmp_path, "twin")
    assert said(answers_of(layout("whole"), renamed, section)) != said(whole)


def test_killed_writing_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = WritingSection(samples=4, temperature=1.0, max_new_tokens=8, chunk_prompts=1)
    writer = writer_of(folder, tmp_path)
    layouts = [RunLayout(tmp_path / name, str(tmp_path / name), {}) for name in ("at_once", "killed")]
    answers_of(layouts[0], writer, section)
    write_prompts_artifact(layouts[1], PROMPTS)
    [work] = stage.prepare(layouts[1], [writer], section, ClusterSection(), seed=0)
    assert (work.total, work.done, list(work.missing)) == (12, 0, [0, 1, 2])
    run_here([replace(work, missing=[1], finish=list)], QUIET)
    [work] = stage.prepare(layouts[1], [writer], section, ClusterSection(), seed=0)
    assert (work.done, list(work.missing)) == (4, [0, 2])
    run_here([work], QUIET)
    one, other = (layout.written_answers_path("colours") / stage.ANSWERS_FILE for layout in layouts)
    assert one.read_bytes() == other.read_bytes()
    monkeypatch.setattr(stage, "WriterWorker", None)  # what is finished starts nothing
    [work] = stage.prepare(layouts[1], [writer], section, ClusterSection(), seed=0)
    assert not work.missing and run_here([work], QUIET)[0].kind == "answers"
    with pytest.raises(ArtifactError, match=r"settings\.temperature: 1.0 -> 0.5"):
        stage.prepare(layouts[1], [writer], section.model_copy(update={"temperature": 0.5}), ClusterSection(), seed=0)


def test_more_prompts_than_an_engine_step_holds_are_answered_alike(folder: Path, tmp_path: Path) -> None:
    """Prompts that would be cut between two steps, as the sixth and every tenth of these."""
    section = WritingSection(samples=1, temperature=1.0, max_new_tokens=8)
    prompts = [prompt_of(f"What colour has thing {number}?", f"p{number}") for number in range(40)]
    wide = writer_of(folder, tmp_path)
    engine = wide.model.section.engine.model_copy(update={"max_num_batched_tokens": 100})
    model = wide.model.section.model_copy(update={"engine": engine})
    narrow = replace(wide, model=replace(wide.model, section=model))
    texts = []
    for name, writer in (("wide", wide), ("narrow", narrow)):
        layout = RunLayout(tmp_path / name, str(tmp_path / name), {})
        texts.append(said(answers_of(layout, writer, section, prompts)))
    assert texts[0] == texts[1] and {text for [[text]] in texts[0]} == set(SHARES)


def test_answers_that_are_not_whole_say_why(folder: Path, tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "out", str(tmp_path / "out"), {})
    endless = save_word_model(tmp_path / "endless", {"Blue": 1.0}, then="Blue")
    long = prompt_of("sky " * 600, "long")
    section = WritingSection(samples=1, temperature=0.0, max_new_tokens=8)
    answers = answers_of(layout, writer_of(endless, tmp_path, "endless"), section, [PROMPTS[0], PROMPTS[2], long])
    faults = [of_prompt[0].fault for of_prompt in answers]
    assert faults == ["cut off at max_new_tokens", "cut off at max_new_tokens", "no room for an answer"]
    assert answers[0][0].text == "Blue" * 8 and answers[0][0].messages == ()
    assert artifact.load(layout.written_answers_path("endless"), "answers").counts["whole"] == 0


def test_saved_answers_are_plain_json_lines(folder: Path, tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "out", str(tmp_path / "out"), {})
    section = WritingSection(samples=1, temperature=0.0, max_new_tokens=8)
    answers_of(layout, writer_of(folder, tmp_path), section, PROMPTS[:1])
    line = (layout.written_answers_path("colours") / stage.ANSWERS_FILE).read_text()
    assert json.loads(line) == [
        {"writer": "colours", "sample": 0, "messages": [{"role": "assistant", "content": "Blue"}]}
    ]
