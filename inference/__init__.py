"""A source reads dialogues and leaves top-k rows.

Goes in: a model and the tokens artifact under its template. Comes out: a logprobs store. The only folder that imports
vLLM. `teacher.py` is the engine's face; `topk_pooler.py` runs inside the engine; `stage.py` is the stage's door.
"""
