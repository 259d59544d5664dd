"""mergekit 0.1.5 as an oracle: the same random checkpoints through both.

Most methods sum in mergekit's order and give the same bits. The others are at most a rounding away, `ROUNDED` says which.
The ties of TIES and SCE fall the same way, because small tensors are ordered by the same functions of torch.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from merge_models import llama_weights, load_model, save_model, updated

from merge import merge_checkpoints

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"weights": [0.2, 0.5, 0.6]}),
    "linear, sum": ("linear", {"weights": [0.2, 0.5, 0.6], "normalize": False}),
    "task arithmetic": ("task_arithmetic", {"weights": 0.3, "scale": 0.7}),
    "task arithmetic, mean": ("task_arithmetic", {"weights": [0.2, 0.5, 0.6], "normalize": True}),
    "ties": ("ties", {"weights": [0.2, 0.5, 0.6], "density": 1.0}),
    "ties, trimmed": ("ties", {"weights": [0.2, 0.5, -0.1], "density": [0.3, 0.4, 0.9]}),
    "ties, sum": ("ties", {"density": 0.5, "normalize": False, "scale": 2.0}),
    "sce": ("sce", {"variant": "mergekit", "select_topk": 1.0}),
    "sce, selected": ("sce", {"variant": "mergekit", "select_topk": 0.1}),
    "slerp": ("slerp", {"t": 0.3}),
}
ROUNDED = {"task arithmetic, mean", "sce", "sce, selected", "slerp"}
"""Cases whose sums are ordered otherwise than mergekit's. In all other cases every bit is equal, in both dtypes."""
MOST_OTHER_IN_BFLOAT16 = 5e-4
"""Share of the weights that another rounding of the sums may move by a step of bfloat16. Measured: 1.5e-4."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", list(CASES))
def test_merge_equals_mergekit_run_from_our_own_card(tmp_path: Path, case: str, dtype: str) -> None:
    """mergekit gets the YAML block of our model card, so that the card is tested too."""
    method, parameters = CASES[case]
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in llama_weights().items()}
    base = save_model(tmp_path / "base", weights, dtype=dtype)
    count = 1 if method == "slerp" else 3
    targets = {
        f"t{j}": save_model(tmp_path / f"t{j}", updated(weights, seed=j, size=2e-3 * 2**j), dtype=dtype)
        for j in range(1, count + 1)
    }
    merge_checkpoints(method=method, base=base, targets=targets, out=tmp_path / "ours", parameters=parameters)
    block = yaml.safe_load((tmp_path / "ours" / "README.md").read_text().split("```yaml")[1].split("```")[0])
    settings = MergeConfiguration.model_validate({**block, "out_dtype": dtype})
    run_merge(settings, str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False, quiet=True))
    ours, theirs = load_model(tmp_path / "ours"), load_model(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype == getattr(torch, dtype)
    if case not in ROUNDED:
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name
        return
    # A weight near 0 has tiny steps of its own: there, one rounding of the float32 sums decides.
    step, near_zero = (2.0**-23, 2.0**-25) if dtype == "float32" else (2.0**-7, 2e-8)
    for name in ours:
        torch.testing.assert_close(ours[name].double(), theirs[name].double(), rtol=step, atol=near_zero)
    if dtype == "bfloat16":
        different = sum(int((ours[name] != theirs[name]).sum()) for name in ours)
        assert different <= MOST_OTHER_IN_BFLOAT16 * sum(tensor.numel() for tensor in ours.values())
