"""Models read dialogues and leave top-k rows, or answer questions.

Goes in: models, tokens artifacts under their templates, questions. Comes out: logprobs stores, answers, chosen logprobs. The only
folder that imports vLLM. `engine/` is one engine, `capture/` runs inside of it; `stage.py` is extraction's door, `held_out/`,
`answering/` and `harness/` have those of what measured models do.
"""
