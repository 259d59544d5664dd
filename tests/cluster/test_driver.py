"""The driver of a run needs no accelerator: tokenizing, extraction and alignment load no network and no engine in it."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import cluster.alignment, cluster.extraction, cluster.tokenizing, alignment.stage
from fusechat.config import load_config
from fusechat.models.resolved_model import resolve
from inference import stage

config = load_config(sys.argv[1])
cluster.tokenizing.read_dialogues(config)
for model in config.models:
    cluster.tokenizing.tokenize(config, model.name)
    (work,) = stage.prepare(config.layout, resolve(model, config.digests_path), config.extraction, config.cluster)
    assert work.missing and work.needs.engine_ranks == 1, "the model's work is left to workers with an engine"
assert "transformers.modeling_utils" not in sys.modules, "no network can have been loaded"
assert not {"vllm", "trl"} & set(sys.modules)
torch = sys.modules.get("torch")
assert torch is None or not torch.cuda.is_initialized()
"""


def test_driver_loads_no_network_and_touches_no_accelerator(run_file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(run_file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
