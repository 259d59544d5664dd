"""What a service answers over HTTP, and to which clients. Ray, Serve and vLLM are real, the model is tiny."""

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest
from served_models import PROMPT, ROWS, TOKEN, Served, binary, raw, same

import fusechat
from fusechat.errors import ContractError, UserError
from inference.serving.scoring_records import ScoreRequest
from inference.serving.wire import BINARY, read_reply


def test_it_says_what_it_is(served: Served) -> None:
    with served.connection() as connection:
        (model,) = connection.models()
        faces = model["faces"]
        assert model["id"] == "llama" and set(faces) == {"score", "generate"}
        assert faces["score"]["k"] == 5 and faces["score"]["max_tokens"] == 256
        assert faces["score"]["recipe"] != faces["generate"]["recipe"]
    status = served.status()
    assert status["state"] == "ok"
    for engine in status["engines"]:
        (replica,) = engine["replicas"]
        assert replica["state"] == "RUNNING" and psutil.pid_exists(replica["pid"])
    assert all(
        len(status["processes"][name]) == 1 for name in ("keeper", "host", "raylet", "controller", "proxy", "door")
    )
    assert "llama  score" in served.command("--status").stdout
    (shown,) = json.loads(served.command("--status", "--json").stdout)
    assert shown["processes"] == status["processes"] and shown["engines"] == status["engines"]
    assert raw(served, "GET", "/health", Authorization="")[0] == 200


def test_rows_are_those_of_an_engine_here(served: Served, here: list[Any]) -> None:
    with fusechat.connect(served.address, token=TOKEN) as service:
        there = service.score("llama", ROWS)
    for found, expected in zip(there, here, strict=True):
        assert (found.token_ids == expected.token_ids).all() and (found.is_scored == expected.is_scored).all()
        assert same(found, expected)
    body, kind = binary(here, alone=True)
    status, headers, data = raw(served, "POST", "/v1/score", body, Content_Type=kind)
    assert (status, headers["content-type"]) == (200, BINARY)
    assert all(map(same, read_reply(data).rows, here))


def test_json_for_a_look(served: Served, here: list[Any]) -> None:
    body = json.dumps({"model": "llama", "k": 2, "dialogues": ROWS[:1]}).encode()
    status, headers, data = raw(served, "POST", "/v1/score", body)
    (dialogue,) = json.loads(data)["dialogues"]
    assert status == 200 and headers["content-type"] == "application/json"
    first = dialogue["rows"][0]
    assert first["topk_ids"] == here[0].topk_ids[0, :2].tolist()
    assert first["label_logprob"] == pytest.approx(here[0].label_logprob[0])
    targets = [row["position"] for row in dialogue["rows"]]
    assert targets == np.flatnonzero(here[0].is_scored).tolist()
    again = {"model": "llama", "dialogues": [{"token_ids": dialogue["token_ids"], "targets": targets}]}
    asked = raw(served, "POST", "/v1/score", json.dumps(again).encode(), Accept=BINARY)
    assert same(read_reply(asked[2]).rows[0], here[0])


def test_chosen_ids(served: Served, here: list[Any]) -> None:
    with fusechat.connect(served.address, token=TOKEN) as service:
        there = service.score("llama", ROWS, chosen_ids=[one.topk_ids[:, ::-1] for one in here])
        with pytest.raises(ContractError, match="chosen_ids are given for 1"):
            service.score("llama", ROWS, chosen_ids=[here[0].topk_ids])
    for found, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(found.chosen_logprobs, expected.topk_logprobs[:, ::-1], atol=1e-5)
        assert found.rest_logprob is not None and (found.rest_logprob < 0).all()


def test_who_may_not_come_in_and_what_is_no_request(served: Served, here: list[Any]) -> None:
    good = json.dumps({"model": "llama", "dialogues": ROWS[:1]}).encode()
    body, kind = binary(here, recipe="0" * 16)
    long = json.dumps({"model": "llama", "dialogues": [{"token_ids": [5] * 300, "targets": [1]}]}).encode()
    wanted = [
        (401, raw(served, "POST", "/v1/score", good, Authorization="Bearer no")),
        (401, raw(served, "GET", "/metrics", Authorization="")),
        (404, raw(served, "GET", "/v1/nothing")),
        (405, raw(served, "GET", "/v1/score")),
        (415, raw(served, "POST", "/v1/score", good, Content_Type="text/plain")),
        (400, raw(served, "POST", "/v1/score", b"{")),
        (400, raw(served, "POST", "/v1/score", b"\xff" * 40, Content_Type=BINARY)),
        (400, raw(served, "POST", "/v1/score", body[:-7], Content_Type=kind)),
        (404, raw(served, "POST", "/v1/score", good.replace(b"llama", b"other"))),
        (400, raw(served, "POST", "/v1/score", good.replace(b"assistant", b"nobody"))),
        (400, raw(served, "POST", "/v1/score", long)),
        (409, raw(served, "POST", "/v1/score", body, Content_Type=kind)),
        (413, raw(served, "POST", "/v1/score", b" " * (64 * 2**20 + 1))),
        (400, raw(served, "POST", "/v1/chat/completions", b'{"model": "llama", "messages": 3}')),
    ]
    for expected, (status, _, data) in wanted:
        assert status == expected, data
        assert json.loads(data)["error"]["message"]
    assert b"256" in wanted[10][1][2] and str(served.folder).encode() not in wanted[10][1][2]
    with fusechat.connect(served.address, token="wrong", patience=0) as service, pytest.raises(UserError, match="401"):
        service.status()


def test_more_than_fits_is_refused_for_now(served: Served, here: list[Any]) -> None:
    body, kind = binary(here, alone=True)
    with ThreadPoolExecutor(40) as threads:
        replies = list(threads.map(lambda _: raw(served, "POST", "/v1/score", body, Content_Type=kind), range(40)))
    refused = [headers for status, headers, _ in replies if status == 429]
    assert refused and all(headers["retry-after"] == "1" for headers in refused)
    assert {status for status, _, _ in replies} == {200, 429}
    for status, _, data in replies:
        assert status == 429 or all(map(same, read_reply(data).rows, here))
    with served.connection() as patient, ThreadPoolExecutor(20) as threads:
        ids, marks = tuple(one.token_ids for one in here), tuple(one.is_scored for one in here)
        asked = ScoreRequest("llama", token_ids=ids, is_scored=marks, alone=True)
        for reply in threads.map(lambda _: patient.score(asked), range(20)):
            assert all(map(same, reply.rows, here))
    assert b'fusechat_requests_total{model="",path="/v1/score",status="429"}' in raw(served, "GET", "/metrics")[2]


def test_openai_client(served: Served, tiny_models: dict[str, Path]) -> None:
    client = openai.OpenAI(base_url=f"{served.address}/v1", api_key=TOKEN)
    assert [model.id for model in client.models.list()] == ["llama"]
    asked: dict[str, Any] = {"model": "llama", "messages": PROMPT["messages"], "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = [part.choices[0].delta.content or "" for part in client.chat.completions.create(**asked, stream=True)]
    assert whole and "".join(pieces) == whole and len(pieces) > 2
    plain = client.completions.create(model="llama", prompt="3 + 4 =", max_tokens=4, temperature=0, logprobs=2)
    assert len(plain.choices[0].logprobs.tokens) == 4
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**asked, "model": "other"})
    with fusechat.connect(served.address, token=TOKEN) as service:
        assert service.generate("llama", [PROMPT], max_new_tokens=8) == [whole]
    assert fusechat.generate(tiny_models["llama"], [PROMPT], max_new_tokens=8, engine={"kv_cache_gib": 0.05}) == [whole]


def test_python_page(served: Served, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/python-api.md says of a service runs as it stands; tests/app/test_python_api.py runs the rest."""
    page = (Path(__file__).parents[2] / "docs/python-api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = [block for block in blocks if "ADDRESS" in block]
    monkeypatch.setenv("FUSECHAT_TOKEN", TOKEN)
    values: dict[str, Any] = {
        "fusechat": fusechat,
        "ADDRESS": served.address,
        "MODEL": "llama",
        "rows": ROWS,
        "asked": [PROMPT],
    }
    exec(block, values)
    assert len(values["there"]) == len(ROWS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_session_of_the_page(served: Served) -> None:
    """What docs/service.md shows is answered as it stands, but for the address and the model's name."""
    page = (Path(__file__).parents[2] / "docs/service.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (curl .*?)(?=\n[{$`])", page, re.DOTALL | re.MULTILINE)
    assert len(commands) == 4
    shown = [set(json.loads(_run(served, command))) for command in commands]
    assert shown[0] == {"status", "away"} and shown[1] == {"object", "data"}
    assert shown[2] == {"model", "recipe", "dialogues"} and {"choices", "usage"} <= shown[3]


def _run(served: Served, command: str) -> str:
    """What a command of the page prints."""
    command = command.replace("http://127.0.0.1:8000", served.address).replace("smollm2", "llama")
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, env={**os.environ, "FUSECHAT_TOKEN": TOKEN}
    ).stdout


def test_harness(
    served: Served, here: list[Any], tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's OpenAI-compatible model sums up the same label logprobs as a row store holds."""
    lm_eval = pytest.importorskip("lm_eval.models.openai_completions")
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    model = lm_eval.LocalCompletionsAPI(
        base_url=f"{served.address}/v1/completions", model="llama", tokenizer=str(tiny_models["llama"]), max_length=256
    )
    one = here[0]
    first, *_, last = np.flatnonzero(one.is_scored).tolist()
    ids = one.token_ids[: last + 1].tolist()
    assert one.is_scored[first : last + 1].all()
    ((found, is_greedy),) = model._loglikelihood_tokens([(("a", "b"), ids[:first], ids[first:])], disable_tqdm=True)
    assert found == pytest.approx(float(one.label_logprob.sum()), abs=1e-3)
    assert not is_greedy
