"""What each rule keeps, and what becomes of its verdicts: no answer twice, the best first, equals by lot, counts."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from writing_runs import write_prompts_artifact

from fusechat.config.layout import RunLayout
from fusechat.config.writing import WritingSection
from fusechat.errors import ConfigError, DialogueError
from fusechat.storage import artifact
from fusechat.text.dialogues import Message, read_dialogues
from fusechat.text.prompts import Prompt, prompt_of
from fusechat.text.writing_files import DIALOGUES_FILE, VERDICTS_FILE
from inference.writing import scoring, selection
from inference.writing.answers import Answer
from inference.writing.decisions import Known, decide_all, find_rule
from inference.writing.rules import RULES

PROMPT = prompt_of({"prompt": "3+4?", "reference": "The answer is 7.", "kind": "sum"}, "p")


def answer(text: str, writer: str = "a", sample: int = 0, **known: object) -> Answer:
    return Answer(writer, sample, (Message("assistant", text),), **known)  # type: ignore[arg-type]


def kept_by(rule: str, answers: Sequence[Answer], prompt: Prompt = PROMPT, **parameters: object) -> list[str]:
    section = WritingSection(keep=rule, parameters=parameters)
    _, decide = find_rule(section)
    verdicts = decide(prompt, answers)
    assert len(verdicts) == len(answers) and all(verdict.is_kept != bool(verdict.reason) for verdict in verdicts)
    return [one.text for one, verdict in zip(answers, verdicts, strict=True) if verdict.is_kept]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ["the answer is 7"]),
        ({"compare": "number"}, ["the answer is 7", "3+4 = 7.0", "It is 07!", "7"]),
        ({"compare": "pattern", "pattern": r"is (\d)"}, ["the answer is 7"]),
        ({"compare": "pattern", "pattern": r"\d$"}, ["7"]),
    ],
)
def test_reference_compares_the_text_its_last_number_or_what_a_pattern_finds(
    parameters: dict, expected: list[str]
) -> None:
    prompt = PROMPT if parameters.get("pattern") != r"\d$" else prompt_of({"prompt": "x", "reference": "7"}, "p")
    texts = ["the answer is 7", "3+4 = 7.0", "It is 07!", "7", "It is 8.", "7 or 8", "-7"]
    found = kept_by("reference", [answer(text) for text in texts], prompt, **parameters)
    assert found == (expected if parameters.get("pattern") != r"\d$" else ["the answer is 7", "7", "-7"])


def test_reference_keeps_nothing_of_a_prompt_without_one() -> None:
    assert kept_by("reference", [answer("7")], prompt_of("3+4?", "p")) == []


def test_agreement_keeps_what_most_say_if_enough_do() -> None:
    answers = [answer(text, sample=n) for n, text in enumerate(["7", " 7.", "8", "9"])]
    assert kept_by("agreement", answers) == ["7", " 7."]
    assert kept_by("agreement", answers, min_share=0.51) == []
    assert kept_by("agreement", [*answers, answer("8")]) == []  # two are equally frequent
    assert kept_by("agreement", [answer("so 7"), answer("thus 7"), answer("8")], compare="number") == [
        "so 7",
        "thus 7",
    ]
    assert kept_by("agreement", [answer("no number")], compare="number") == []


def test_likelihood_keeps_what_others_could_score_and_ranks_by_their_mean() -> None:
    answers = [
        answer("good", logprobs={"b": -0.5, "c": -1.5}), answer("better", "b", logprobs={"a": -0.25, "c": -0.5}),
        answer("alone", "c"),
    ]  # fmt: skip
    assert kept_by("likelihood", answers) == ["good", "better"]
    assert kept_by("likelihood", answers, min_logprob=-0.5) == ["better"]
    section = WritingSection(keep="likelihood")
    _, decide = find_rule(section)
    verdicts = decide_all(PROMPT, answers, decide, per_prompt=1, seed=0)
    assert [verdict.is_kept for verdict in verdicts] == [False, True, False]


def test_judge_keeps_what_it_scores_well_enough() -> None:
    answers = [answer("good", score=6.5), answer("bad", score=2.0), answer("nonsense")]
    assert kept_by("judge", answers) == ["good", "bad"]
    assert kept_by("judge", answers, min_score=6) == ["good"]


def test_all_keeps_all() -> None:
    assert kept_by("all", [answer("x"), answer("y")]) == ["x", "y"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"keep": "agreemnt"}, "writing.keep: found 'agreemnt'; did you mean 'agreement'"),
        ({"keep": "agreement", "parameters": {"min_shar": 1}}, "did you mean 'min_share'"),
        ({"keep": "agreement", "parameters": {"min_share": 0.0}}, "greater than 0"),
        ({"keep": "reference", "parameters": {"compare": "digits"}}, "writing.parameters.compare"),
    ],
)
def test_unknown_rule_or_parameter_is_refused_with_the_nearest(section: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_rule(WritingSection(**section))


def test_broken_pattern_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ConfigError, match=r"writing.parameters.pattern: .*is no regular expression"):
        find_rule(WritingSection(keep="reference", parameters={"compare": "pattern", "pattern": "(7"}))
    with pytest.raises(ConfigError, match=r"writing.parameters.pattern: .*give one"):
        find_rule(WritingSection(keep="reference", parameters={"compare": "pattern"}))


def test_answers_that_are_not_whole_are_refused_before_the_rule() -> None:
    broken = Answer("a", 0, (), "cut off at max_new_tokens")
    asked: list[int] = []

    def rule(prompt: Prompt, answers: Sequence[Answer]) -> list:
        asked.append(len(answers))
        return RULES["all"].decide(prompt, answers)

    verdicts = decide_all(PROMPT, [broken, answer("7")], rule, per_prompt=None, seed=0)
    assert asked == [1] and verdicts[0].reason == "cut off at max_new_tokens" and verdicts[1].is_kept


def test_no_answer_is_kept_twice_and_equals_are_drawn_by_lot() -> None:
    decide = partial(decide_all, decide=RULES["all"].decide, seed=0)
    answers = [answer("7", writer, sample) for writer in "ab" for sample in range(2)]
    verdicts = decide(PROMPT, answers, per_prompt=None)
    assert sum(verdict.is_kept for verdict in verdicts) == 1
    assert {verdict.reason for verdict in verdicts if not verdict.is_kept} == {"the same as one that is kept"}
    firsts = []
    for number in range(40):
        prompt = prompt_of("x", f"p{number}")
        verdicts = decide(prompt, [answer("7", "a"), answer("8", "b")], per_prompt=1)
        firsts.append(verdicts[0].is_kept)
    assert 8 < sum(firsts) < 32  # no writer wins by its place


def written(tmp_path: Path, section: WritingSection, texts: dict[str, list[list[str]]]) -> RunLayout:
    """All answers of some writers to two prompts, as the stage leaves them."""
    layout = RunLayout(tmp_path, str(tmp_path), {})
    prompts = [PROMPT, prompt_of({"prompt": "4+5?", "reference": "9"}, "q")]
    write_prompts_artifact(layout, prompts)
    for writer, of_writer in texts.items():
        folder = layout.written_answers_path(writer)
        claim = artifact.claim(folder, "answers", settings={}, parents={})
        rows = [[answer(text, writer, n).to_row() for n, text in enumerate(of_prompt)] for of_prompt in of_writer]
        (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        claim.finish({})
    return layout


def keep(layout: RunLayout, section: WritingSection, writers: list[str], known: Known) -> artifact.Artifact:
    answers = {name: artifact.load(layout.written_answers_path(name), "answers") for name in writers}
    claim = selection.claim(layout, selection.recipe(section, writers, [], None, 0), answers)
    return selection.keep(claim, layout, writers, section, known, seed=0)


def test_what_is_kept_becomes_dialogues_of_their_authors_and_all_verdicts_stand_beside(tmp_path: Path) -> None:
    section = WritingSection(keep="reference", parameters={"compare": "number"}, per_prompt=None)
    layout = written(tmp_path, section, {"a": [["7", "8"], ["8", "8"]], "b": [["so 7", "7"], ["7", "7"]]})
    made = keep(layout, section, ["a", "b"], Known.nothing())
    dialogues = list(read_dialogues(layout.written_path / DIALOGUES_FILE))
    assert {dialogue.id: dialogue.author for dialogue in dialogues} in (
        {"p:a.0": "a", "p:b.0": "b"}, {"p:b.0": "b", "p:b.1": "b"},
    )  # fmt: skip  # 7 was said twice
    assert {dialogue.kind for dialogue in dialogues} == {"sum"}
    assert made.counts["answers"] == 8 and made.counts["dialogues"] == 2 and made.counts["prompts_without_answer"] == 1
    of_b = next(row for row in made.counts["table"] if row["writer"] == "b" and row["kind"] == "")
    assert of_b == {
        "writer": "b", "kind": "", "rule": "reference", "answers": 2, "kept": 0, "refused": {"not the reference": 2}
    }  # fmt: skip
    verdicts = [json.loads(line) for line in (layout.written_path / VERDICTS_FILE).read_text().splitlines()]
    assert [len(row["answers"]) for row in verdicts] == [4, 4]
    assert [one["kept"] for one in verdicts[1]["answers"]] == [False] * 4
    assert {one["reason"] for one in verdicts[1]["answers"]} == {"not the reference"}


def test_all_refused_says_by_which_rule_shows_three_and_keeps_what_was_written(tmp_path: Path) -> None:
    section = WritingSection(keep="reference")
    layout = written(tmp_path, section, {"a": [["8", "9"], ["8", "7"]]})
    with pytest.raises(DialogueError) as error:
        keep(layout, section, ["a"], Known.nothing())
    message = str(error.value)
    assert "writing.keep: reference: none of the 4 answers is kept (4 not the reference)" in message
    assert message.count("(not the reference)") == 3 and "'p', a: '8'" in message
    assert artifact.load(layout.written_answers_path("a"), "answers")
    made = keep(layout, WritingSection(keep="all", per_prompt=2), ["a"], Known.nothing())  # no restart is asked for
    assert made.counts["dialogues"] == 4


def test_writer_with_nobody_else_to_score_it_is_refused() -> None:
    scoring.check_scorers(["a", "b"], ["a", "b"])
    scoring.check_scorers(["a"], ["b"])
    with pytest.raises(ConfigError, match="only a would score the answers of a"):
        scoring.check_scorers(["b", "a"], ["a"])
