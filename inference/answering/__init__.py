"""Models answer questions.

Goes in: question files and the models that are to answer. Comes out: an answers artifact per set and model, in the form of
the set. Knows nothing about who compares the answers.
"""
