"""A process that only makes tokens does without torch, and its tokens are those of one that has it."""

import json
import subprocess
import sys
from pathlib import Path

from fusechat.text.chat_template import load_tokenizer

CODE = """
import json, sys
from fusechat.storage.work import Place
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.token_process import prepare_token_process

prepare_token_process(Place(owns_process=True, cpus=1))
tokenizer, template = load_tokenizer(sys.argv[1])
ids = tokenizer("Wie geht's, 蓝色?")["input_ids"]
loaded = "torch" in sys.modules
import torch
print(json.dumps([ids, template, loaded, torch.zeros(2).tolist()]))
"""


def test_tokenizers_do_without_torch_in_a_process_of_their_own(tiny_models: dict[str, Path]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, str(tiny_models["llama"])], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    tokenizer, template = load_tokenizer(str(tiny_models["llama"]))
    expected = tokenizer("Wie geht's, 蓝色?")["input_ids"]
    assert json.loads(done.stdout) == [expected, template, False, [0.0, 0.0]], "and torch is found by whoever wants it"
