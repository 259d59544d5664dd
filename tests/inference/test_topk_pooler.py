"""The pooler on hidden states of our own making, with vLLM's own request metadata: chunks, preemption, memory."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm import PoolingParams
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

from fusechat.errors import EngineError
from inference.capture import topk_pooler
from inference.capture.rows import TopKRows, encode_chosen, encode_targets, unpack_rows
from inference.capture.topk_pooler import CHOSEN, TARGETS, TASK, TopKPooler

VOCABULARY, PADDED, HIDDEN, K = 50, 64, 16, 4
torch.manual_seed(0)
HEAD = torch.randn(PADDED, HIDDEN)
TABLE = torch.randn(VOCABULARY, HIDDEN)  # hidden state of a position: that of its token


class Model:
    """A head of one rank with padded columns, as vLLM's."""

    def __init__(self) -> None:
        self.shards = SimpleNamespace(num_org_elements=VOCABULARY, org_vocab_start_index=0)
        self.heads = [SimpleNamespace(shard=None), SimpleNamespace(shard=None)]
        self.rows_seen: list[int] = []

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.heads[1].shard = (self.shards, 1)
        self.rows_seen.append(len(hidden))
        return hidden @ HEAD.T + 5 * (torch.arange(PADDED) >= VOCABULARY)  # padding would win


class Request:
    def __init__(self, length: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.ids = rng.integers(0, VOCABULARY, length)
        self.is_scored = rng.random(length) < 0.5
        self.is_scored[0] = False
        self.state = PoolingStates()
        self.params = PoolingParams(task=TASK, extra_kwargs={TARGETS: encode_targets(self.ids, self.is_scored)})

    def expected(self) -> TopKRows:
        rows = np.flatnonzero(self.is_scored)
        logprobs = (TABLE[self.ids[rows - 1]] @ HEAD[:VOCABULARY].T).log_softmax(-1)
        values, ids = logprobs.topk(K)
        label = logprobs[torch.arange(len(rows)), self.ids[rows]]
        return TopKRows(ids.numpy(), values.numpy(), label.numpy(), label.numpy())


def step(pooler: TopKPooler, chunks: list[tuple[Request, int, int]]) -> list[torch.Tensor | None]:
    """One engine step: per request the positions start..stop-1."""
    lengths = [len(request.ids) for request, _, _ in chunks]
    metadata = PoolingMetadata(
        prompt_lens=torch.tensor(lengths),
        prompt_token_ids=None,
        prompt_token_ids_cpu=None,
        pooling_params=[request.params for request, _, _ in chunks],
        pooling_states=[request.state for request, _, _ in chunks],
    )
    counts = np.array([stop - start for _, start, stop in chunks])
    stops = torch.tensor([stop for _, _, stop in chunks])
    metadata.build_pooling_cursor(counts, stops, device=torch.device("cpu"))
    hidden = torch.cat([TABLE[request.ids[start:stop]] for request, start, stop in chunks])
    return pooler(hidden, metadata)


def make_pooler(model: Model | None = None) -> TopKPooler:
    model = model or Model()
    return TopKPooler(model.compute_logits, model.heads, k=K, columns=VOCABULARY)


def assert_rows(packed: torch.Tensor | None, request: Request) -> None:
    assert packed is not None
    found, expected = unpack_rows(packed.numpy()), request.expected()
    np.testing.assert_array_equal(found.topk_ids, expected.topk_ids)
    np.testing.assert_allclose(found.topk_logprobs, expected.topk_logprobs, atol=1e-5)
    np.testing.assert_allclose(found.label_logprob, expected.label_logprob, atol=1e-5)


def test_pooler_whole_prompts_give_the_rows_of_their_targets() -> None:
    requests = [Request(length, seed) for seed, length in enumerate((30, 2, 200))]
    outputs = step(make_pooler(), [(request, 0, len(request.ids)) for request in requests])
    for output, request in zip(outputs, requests, strict=True):
        assert_rows(output, request)


@pytest.mark.parametrize("size", [1, 7, 29])
def test_pooler_chunks_of_interleaved_requests_give_each_row_once(size: int) -> None:
    pooler, long, short = make_pooler(), Request(30, 1), Request(12, 2)
    results: dict[int, torch.Tensor | None] = {}
    for start in range(0, 30, size):
        chunks = [(r, start, min(start + size, len(r.ids))) for r in (short, long) if start < len(r.ids)]
        for (request, _, stop), output in zip(chunks, step(pooler, chunks), strict=True):
            assert (output is not None) == (stop == len(request.ids))
            results[id(request)] = output
    assert_rows(results[id(long)], long)
    assert_rows(results[id(short)], short)
    assert not long.state.hidden_states_cache


def test_pooler_step_moves_its_inputs_and_its_rows_in_one_transfer_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that finishes brings the rows of its earlier chunks along; one that does not, nothing."""
    there: list[tuple[int, ...]] = []
    back: list[int] = []
    monkeypatch.setattr(
        topk_pooler, "to_device", lambda values, device: there.append(values.shape) or torch.from_numpy(values)
    )
    monkeypatch.setattr(topk_pooler, "to_host", lambda values: back.append(len(values)) or values)
    pooler, requests = make_pooler(), [Request(length, seed) for seed, length in enumerate((40, 30, 20))]
    assert step(pooler, [(requests[0], 0, 25)]) == [None] and back == []
    outputs = step(pooler, [(requests[0], 25, 40), (requests[1], 0, 30), (requests[2], 0, 10)])
    assert outputs[2] is None
    for output, request in zip(outputs[:2], requests, strict=False):
        assert_rows(output, request)
    counts = [int(request.is_scored.sum()) for request in requests]
    assert back == [(counts[0] + counts[1]) * (2 * K + 2)]
    early, last = int(requests[0].is_scored[:26].sum()), int(requests[2].is_scored[:11].sum())
    assert there == [(2, early), (2, counts[0] - early + counts[1] + last)]


@pytest.mark.parametrize("size", [1, 7, 40])
def test_pooler_gives_chosen_ids_to_those_who_asked_and_to_no_other(size: int) -> None:
    """Requests with none, three and one chosen ids share steps, in chunks."""
    requests = [Request(30, 1), Request(40, 2), Request(25, 3)]
    chosen: dict[int, np.ndarray] = {}
    for place, width in ((1, 3), (2, 1)):
        rows = int(requests[place].is_scored.sum())
        chosen[place] = np.random.default_rng(place).integers(0, VOCABULARY, (rows, width))
        chosen[place][::4, -1] = -1
        options = {**(requests[place].params.extra_kwargs or {}), CHOSEN: encode_chosen(chosen[place])}
        requests[place].params = PoolingParams(task=TASK, extra_kwargs=options)
    pooler, outputs = make_pooler(), {}
    for start in range(0, 40, size):
        chunks = [(r, start, min(start + size, len(r.ids))) for r in requests if start < len(r.ids)]
        for (request, _, _), output in zip(chunks, step(pooler, chunks), strict=True):
            outputs[requests.index(request)] = output
    assert_rows(outputs[0], requests[0])
    for place, ids in chosen.items():
        rows = unpack_rows(outputs[place].numpy(), ids.shape[1])
        expected = requests[place].expected()
        np.testing.assert_array_equal(rows.topk_ids, expected.topk_ids)
        np.testing.assert_allclose(rows.label_logprob, expected.label_logprob, atol=1e-5)
        before = np.flatnonzero(requests[place].is_scored) - 1
        logprobs = (TABLE[requests[place].ids[before]] @ HEAD[:VOCABULARY].T).log_softmax(-1).numpy()
        wanted = np.where(ids >= 0, np.take_along_axis(logprobs, ids.clip(0), axis=1), -np.inf)
        np.testing.assert_allclose(rows.chosen_logprobs, wanted, atol=1e-5)
        others = [np.delete(line, of_row[of_row >= 0]) for line, of_row in zip(logprobs, ids, strict=True)]
        np.testing.assert_allclose(rows.rest_logprob, [np.log(np.exp(line).sum()) for line in others], atol=1e-5)


def test_pooler_copies_no_logits_where_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_pooler, "reduce_chosen", lambda *_, **__: pytest.fail("the logits were copied"))
    request = Request(90, 4)
    (output,) = step(make_pooler(), [(request, 0, 90)])
    assert_rows(output, request)


def test_pooler_reads_what_it_needs_from_the_request() -> None:
    """With token ids the runner would make a matrix of all prompts in every step."""
    assert not make_pooler().get_pooling_updates(TASK).requires_token_ids


def test_pooler_preempted_request_gives_each_row_once() -> None:
    pooler, request = make_pooler(), Request(40, 3)
    for start, stop in ((0, 10), (10, 25), (0, 15), (15, 20), (0, 30)):  # preempted twice, its state not cleared
        assert step(pooler, [(request, start, stop)]) == [None]
    (output,) = step(pooler, [(request, 30, 40)])
    assert_rows(output, request)


def test_pooler_multiplies_the_head_with_target_rows_only_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_pooler, "CPU_BLOCK_ROWS", 8)
    model, request = Model(), Request(90, 4)
    (output,) = step(make_pooler(model), [(request, 0, 90)])
    assert_rows(output, request)
    assert sum(model.rows_seen) == request.is_scored.sum()
    assert max(model.rows_seen) == 8


def test_pooler_without_targets_never_touches_the_head() -> None:
    model, request = Model(), Request(20, 5)
    request.params = PoolingParams(task=TASK, extra_kwargs={TARGETS: b""})
    (output,) = step(make_pooler(model), [(request, 0, 20)])
    assert output is not None and output.shape == (0, 2 * K + 2)
    assert model.rows_seen == []


def test_pooler_memory_profile_scores_every_position() -> None:
    """vLLM sizes the KV cache around this call: no options."""
    model = Model()
    metadata = PoolingMetadata(
        prompt_lens=torch.tensor([10, 13]),
        prompt_token_ids=None,
        prompt_token_ids_cpu=None,
        pooling_params=[PoolingParams(task=TASK)] * 2,
        pooling_states=[PoolingStates(), PoolingStates()],
    )
    metadata.build_pooling_cursor(np.array([10, 13]), torch.tensor([10, 13]), device=torch.device("cpu"))
    outputs = make_pooler(model)(torch.randn(23, HIDDEN), metadata)
    assert [len(output) for output in outputs] == [10, 13]
    assert sum(model.rows_seen) == 23


def test_pooler_model_with_a_head_of_its_own_making_is_refused() -> None:
    request = Request(20, 6)
    pooler = TopKPooler(lambda hidden: hidden @ HEAD.T, [], k=K, columns=VOCABULARY)
    with pytest.raises(EngineError, match="capture to prompt_logprobs"):
        step(pooler, [(request, 0, 20)])


def test_pooler_holds_no_parameters_of_its_model() -> None:
    model = torch.nn.Linear(2, 2)
    pooler = TopKPooler(model.forward, [model], k=K, columns=VOCABULARY)
    assert list(pooler.parameters()) == []
