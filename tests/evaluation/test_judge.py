"""The judge, against a real HTTP server that speaks the protocol and fails on request."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_endpoint import Endpoint, serving

from evaluation.judge.judge import AnswerSet, judge_answers
from evaluation.judge.judge_prompts import read_score, read_verdict
from fusechat.config.evaluation import JudgeSection
from fusechat.errors import ConfigError, JudgeError
from fusechat.text.questions import Question


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as server:
        yield server


def judge(endpoint: Endpoint, **fields: Any) -> JudgeSection:
    return JudgeSection(url=endpoint.url, model="examiner", backoff_seconds=0.005, **fields)


def answer_set(questions: int = 6, turns: int = 2, models: tuple[str, ...] = ("sft", "fused")) -> AnswerSet:
    asked = [Question(str(n), tuple(f"question {n}.{t}" for t in range(turns))) for n in range(questions)]
    answers = {m: [[f"{m} says {n}.{t}" for t in range(turns)] for n in range(questions)] for m in models}
    return AnswerSet("set", asked, answers)


def test_scores_are_means_and_the_judges_noise_is_the_known_one(endpoint: Endpoint, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)

    def reply(body: dict, number: int) -> str:
        base = 7 if "fused says" in body["messages"][-1]["content"] else 4
        return f"Reasons.\nSCORE: {base + draws.choice([-1, 1])}"

    endpoint.reply = reply
    section = judge(endpoint, repeats=4, concurrency=1)
    found = judge_answers(section, [answer_set(questions=40, turns=1)], tmp_path / "j.jsonl", seed=0)
    fused, sft = (found["sets"]["set"]["single"][name] for name in ("fused", "sft"))
    assert fused["score"] == pytest.approx(7, abs=0.4) and sft["score"] == pytest.approx(4, abs=0.4)
    assert fused["low"] < fused["score"] < fused["high"]
    # A judge that is off by 1 either way: standard deviation 1 a verdict, 160 verdicts.
    assert fused["judge_noise"] == pytest.approx(1 / np.sqrt(160), rel=0.1)
    assert (fused["verdicts"], fused["nonsense"], fused["questions"]) == (160, 0, 40)
    assert found["cost"]["prompt_tokens"] == 100 * 320 and found["cost"]["asked_now"] == 320


def test_without_repeats_no_noise_and_with_few_questions_no_interval_is_invented(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    found = judge_answers(judge(endpoint, repeats=1), [answer_set(questions=1)], tmp_path / "j.jsonl", seed=0)
    fused = found["sets"]["set"]["single"]["fused"]
    assert fused["score"] == 7 and fused["judge_noise"] is None and fused["low"] is None
    assert fused["by_turn"] == {"1": 7.0, "2": 7.0}


def test_pairs_are_judged_in_both_orders_and_a_judge_that_prefers_the_first_is_found_out(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.reply = lambda body, number: "VERDICT: A"
    section = judge(endpoint, modes=["pairwise"], repeats=2)
    found = judge_answers(section, [answer_set()], tmp_path / "a.jsonl", seed=0)["sets"]["set"]["pairwise"]
    assert list(found) == ["fused"], "the baseline is not compared with itself"
    assert found["fused"]["win_rate"] == 0.5 and found["fused"]["supports"] == "undecided"
    assert found["fused"]["orders_agree"] == 0 and found["fused"]["first_wins"] == 1
    assert found["fused"]["verdicts"] == 6 * 2 * 2 * 2

    def fair(body: dict, number: int) -> str:
        text = body["messages"][-1]["content"]
        return "VERDICT: " + ("A" if text.index("fused says") < text.index("sft says") else "B")

    endpoint.reply = fair
    found = judge_answers(section, [answer_set()], tmp_path / "b.jsonl", seed=0)["sets"]["set"]["pairwise"]["fused"]
    assert (found["win_rate"], found["supports"], found["orders_agree"], found["first_wins"]) == (1, "higher", 1, 0.5)
    assert found["low"] < 0.7 and found["high"] == 1, "six questions do not prove that all others are won"


def test_verdict_without_a_readable_one_in_the_other_order_is_not_counted(endpoint: Endpoint, tmp_path: Path) -> None:
    def prefers_the_first(body: dict, number: int) -> str:
        text = body["messages"][-1]["content"]
        swapped = text.index("sft says") < text.index("fused says")
        return "no idea" if swapped and "question 0." in text else "VERDICT: A"

    endpoint.reply = prefers_the_first
    section = judge(endpoint, modes=["pairwise"], repeats=2)
    found = judge_answers(section, [answer_set(turns=1)], tmp_path / "j.jsonl", seed=0)["sets"]["set"]["pairwise"]
    fused = found["fused"]
    assert (fused["win_rate"], fused["questions"], fused["nonsense"], fused["alone"]) == (0.5, 5, 2, 2)


def test_failures_of_every_sort_are_tried_again_and_cost_no_verdict(endpoint: Endpoint, tmp_path: Path) -> None:
    faults = [429, 500, "hang up", "no json", 503, "silent"]
    endpoint.fault = lambda number: faults[number] if number < len(faults) else None
    section = judge(endpoint, repeats=1, timeout_seconds=0.5, concurrency=2)
    found = judge_answers(section, [answer_set()], tmp_path / "j.jsonl", seed=0)
    assert found["sets"]["set"]["single"]["fused"]["score"] == 7
    assert len(endpoint.bodies) == 24 + len(faults) == found["cost"]["attempts_now"]


def test_nonsense_is_counted_apart_and_never_scored(endpoint: Endpoint, tmp_path: Path) -> None:
    nonsense = ["I like it", "SCORE: 11", "SCORE: high", "", "SCORE: 7 or 8", "It deserves SCORE: 3, I think."]
    endpoint.reply = lambda body, number: nonsense[number] if number < 6 else "SCORE: 9"
    section = judge(endpoint, repeats=1, concurrency=1)
    found = judge_answers(section, [answer_set(models=("fused",))], tmp_path / "j.jsonl", seed=0)
    fused = found["sets"]["set"]["single"]["fused"]
    assert (fused["nonsense"], fused["verdicts"], fused["score"]) == (6, 12, 9)


def test_verdicts_are_read_from_their_line_alone() -> None:
    assert read_score("SCORE: 3\nOn reflection:\n**SCORE: 8.5/10**") == 8.5
    assert read_score("score: 0") is None and read_score("SCORE 5") is None
    assert read_score("**SCORE: 9**") == 9 and read_score("SCORE: 10.\n```") == 10 and read_score("Score: 7 / 10") == 7
    assert read_score("<think>\nSCORE: 2\n</think>\nSCORE: 8") == 8
    for nonsense in (
        "SCORE: -5", "SCORE: .5", "SCORE: 7,5", "SCORE: 8 out of 10", "SCORE: 7/100", "SCORE: 7 %", "<think>\nSCORE: 2\nno wait",
        "<think>\nSCORE: 2", "SCORE: 3\nBut the second answer", "I gave SCORE: 3",
    ):  # fmt: skip
        assert read_score(nonsense) is None, nonsense
    assert read_verdict("VERDICT: A\nor rather not") is None and read_verdict("<think>\nVERDICT: A") is None
    assert read_verdict("verdict: tie.") == 0.5 and read_verdict("A") is None and read_verdict("VERDICT: C") is None


def test_killed_judging_goes_on_and_asks_for_nothing_twice(endpoint: Endpoint, tmp_path: Path) -> None:
    section, cache = judge(endpoint, repeats=2, max_attempts=2), tmp_path / "j.jsonl"
    endpoint.fault = lambda number: 500 if number >= 20 else None
    with pytest.raises(
        JudgeError, match=r"of 48 verdicts failed 2 times \(last: .*status 500.*were not asked for after"
    ):
        judge_answers(section, [answer_set()], cache, seed=0)
    with cache.open("a") as file:
        file.write('{"key": "half of a li')
    endpoint.fault, endpoint.bodies = lambda number: None, []
    found = judge_answers(section, [answer_set()], cache, seed=0)
    assert len(endpoint.bodies) == 28 == found["cost"]["asked_now"] and found["cost"]["verdicts"] == 48
    endpoint.bodies = []
    assert judge_answers(section, [answer_set()], cache, seed=0)["sets"] == found["sets"] and not endpoint.bodies


@pytest.mark.parametrize(("concurrency", "most"), [(1, 3), (5, 5 + 4)])
def test_endpoint_that_is_not_there_costs_few_requests(
    endpoint: Endpoint, tmp_path: Path, concurrency: int, most: int
) -> None:
    endpoint.fault = lambda number: 503
    section = judge(endpoint, repeats=2, max_attempts=2, concurrency=concurrency)
    with pytest.raises(JudgeError, match=r"were not asked for after \d+ failures in a row; all that came"):
        judge_answers(section, [answer_set()], tmp_path / "j.jsonl", seed=0)
    assert len(endpoint.bodies) <= 2 * most


def test_request_that_fails_by_itself_stops_no_other(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda number: 500 if number < 2 else None
    section = judge(endpoint, repeats=1, max_attempts=2, concurrency=1)
    with pytest.raises(JudgeError, match=r"1 of 24 verdicts failed 2 times \(last: [^;]*\); all that came"):
        judge_answers(section, [answer_set()], tmp_path / "j.jsonl", seed=0)
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 23


def test_concurrency_is_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda body, number: time.sleep(0.02) or "SCORE: 5"
    judge_answers(judge(endpoint, repeats=1, concurrency=3), [answer_set()], tmp_path / "j.jsonl", seed=0)
    assert 2 <= endpoint.most_at_once <= 3


def test_key_comes_from_the_environment_and_stands_nowhere_else(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, cache = judge(endpoint, key_variable="JUDGE_KEY", repeats=1), tmp_path / "j.jsonl"
    with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
        judge_answers(section, [answer_set(1)], cache, seed=0)
    monkeypatch.setenv("JUDGE_KEY", "open sesame")
    found = judge_answers(section, [answer_set(1)], cache, seed=0)
    assert set(endpoint.keys) == {"Bearer open sesame"}
    assert "sesame" not in cache.read_text() + json.dumps(found)


def test_refused_key_or_model_ends_at_once_with_the_way_out(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda number: 401
    with pytest.raises((ConfigError, ExceptionGroup)) as error:
        judge_answers(judge(endpoint, concurrency=1), [answer_set()], tmp_path / "j.jsonl", seed=0)
    assert isinstance(error.value, ConfigError) and "status 401" in str(error.value)
    assert len(endpoint.bodies) == 1


def test_question_that_a_model_had_no_room_for_is_judged_for_the_others(endpoint: Endpoint, tmp_path: Path) -> None:
    found = answer_set(turns=1)
    found.answers["fused"][0] = None  # type: ignore[index]
    result = judge_answers(
        judge(endpoint, repeats=1, modes=["single", "pairwise"]), [found], tmp_path / "j.jsonl", seed=0
    )
    assert result["sets"]["set"]["single"]["fused"]["questions"] == 5
    assert result["sets"]["set"]["single"]["sft"]["questions"] == 6


@pytest.mark.parametrize("filtered", [0, 3, 11])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_question_that_a_filter_refuses_is_that_verdicts_nonsense_whenever_it_comes(
    endpoint: Endpoint, tmp_path: Path, filtered: int, concurrency: int
) -> None:
    endpoint.reply = lambda body, number: 400 if f"question {filtered}." in str(body) else "SCORE: 6"
    section, cache = judge(endpoint, repeats=1, concurrency=concurrency), tmp_path / "j.jsonl"
    asked = answer_set(questions=12, turns=1, models=("fused",))
    fused = judge_answers(section, [asked], cache, seed=0)["sets"]["set"]["single"]["fused"]
    assert (fused["nonsense"], fused["score"]) == (1, 6)
    assert fused["nonsense_reasons"] == {"refused: content_filter": 1}
    endpoint.bodies = []
    assert judge_answers(section, [asked], cache, seed=0)["sets"]["set"]["single"]["fused"] == fused
    assert not endpoint.bodies, "a refusal is kept as every verdict is"


def test_endpoint_that_refuses_the_first_requests_ends_and_keeps_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda body, number: 400
    cache = tmp_path / "j.jsonl"
    with pytest.raises(
        ConfigError, match=r"refuses model 'examiner' \(status 400.*whether the model takes temperature"
    ):
        judge_answers(judge(endpoint, concurrency=1), [answer_set()], cache, seed=0)
    assert len(endpoint.bodies) == 3 and not cache.exists()


def test_filtered_question_that_alone_is_left_after_a_kill_is_nonsense(endpoint: Endpoint, tmp_path: Path) -> None:
    section, cache = judge(endpoint, repeats=1, concurrency=1), tmp_path / "j.jsonl"
    asked = answer_set(turns=1, models=("fused",))
    judge_answers(section, [asked], cache, seed=0)
    cache.write_text("".join(line + "\n" for line in cache.read_text().splitlines()[:-1]))
    endpoint.reply = lambda body, number: 400
    assert judge_answers(section, [asked], cache, seed=0)["sets"]["set"]["single"]["fused"]["nonsense"] == 1


def test_key_that_expires_among_verdicts_makes_no_nonsense_of_the_rest(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda number: 401 if number == 5 else None
    cache = tmp_path / "j.jsonl"
    with pytest.raises(ConfigError, match="status 401"):
        judge_answers(judge(endpoint, repeats=1, concurrency=1), [answer_set()], cache, seed=0)
    assert len(cache.read_text().splitlines()) == 5


def test_replies_without_text_or_cut_are_nonsense_and_parts_are_joined(endpoint: Endpoint, tmp_path: Path) -> None:
    choices = [
        {"message": {"content": None, "reasoning_content": "SCORE: 2"}, "finish_reason": "length"},
        {"message": {"content": "SCORE: 1"}, "finish_reason": "length"},
        {"message": {"content": None}, "finish_reason": "stop"},
        {"message": {"content": None}, "finish_reason": "content_filter"},
        {"message": {"content": [{"type": "text", "text": "Good.\nSCO"}, {"type": "text", "text": "RE: 4"}]}},
        "I like it",
    ]
    endpoint.reply = lambda body, number: choices[number]
    section = judge(endpoint, repeats=1, concurrency=1)
    result = judge_answers(section, [answer_set(turns=1, models=("fused",))], tmp_path / "j.jsonl", seed=0)
    fused = result["sets"]["set"]["single"]["fused"]
    assert (fused["score"], fused["nonsense"], len(endpoint.bodies)) == (4, 5, 6)
    assert fused["nonsense_reasons"] == {
        "cut at the longest verdict": 2, "empty": 1, "refused: content_filter": 1, "no verdict in the last line": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 512}),
        ({"temperature": None, "limit_parameter": "max_completion_tokens"}, {"max_completion_tokens": 512}),
        ({"temperature": None, "max_tokens": None}, {}),
    ],
)
def test_fields_that_a_judge_refuses_can_be_left_out_or_renamed(
    endpoint: Endpoint, tmp_path: Path, fields: dict, sent: dict
) -> None:
    judge_answers(judge(endpoint, repeats=1, **fields), [answer_set(1)], tmp_path / "j.jsonl", seed=0)
    assert {key: value for key, value in endpoint.bodies[0].items() if key not in ("model", "messages")} == sent


def test_no_other_account_of_the_environment_reaches_the_endpoint(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "someone else's")
    judge_answers(judge(endpoint, repeats=1), [answer_set(1)], tmp_path / "j.jsonl", seed=0)
    assert set(endpoint.keys) == {None} and not endpoint.header_names & {"openai-organization", "openai-project"}


def test_pauses_begin_with_the_run_files_double_and_follow_the_endpoint() -> None:
    from openai import AsyncOpenAI
    from openai._models import FinalRequestOptions

    from evaluation.judge.openai_internals import PacedOpenAI

    for name in ("_calculate_retry_timeout", "_parse_retry_after_header"):
        assert callable(getattr(AsyncOpenAI, name)), f"openai has no {name} any more"
    client = PacedOpenAI(3.0, api_key="none", max_retries=9)
    options = FinalRequestOptions(method="post", url="/")
    for retries, most in enumerate((3, 6, 12, 24, 48, 96, 120, 120)):
        assert most / 2 <= client._calculate_retry_timeout(9 - retries, options) <= most
    assert client._calculate_retry_timeout(9, options, {"retry-after": "7"}) == 7
    assert client._calculate_retry_timeout(9, options, {"retry-after": "999"}) == 120
