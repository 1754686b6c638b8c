"""Programs of others that serve a model: how each is started, and whether it answers as transformers does.

``engine.py`` says what an engine is, and each has a file of its own; ``table.py`` lists them, ``running.py`` starts one
and waits until it answers, and ``comparison.py`` compares its answers with the reference. Engines lie in environments
of their own, which one command makes, and are spoken to over HTTP: none is imported here, and neither is torch.
"""
