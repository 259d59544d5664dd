"""From messages to tokens: dialogues and their files, questions, chat templates, control tokens, spans, the tokenize stage.

Goes in: files of dialogues, a model's tokenizer and template. Comes out: tokens artifacts. Knows nothing about networks.
"""
