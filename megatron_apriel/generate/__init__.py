"""Answers from a model, behind one interface: a server that speaks OpenAI's protocol, or transformers on a directory.

Whoever asks (a chat, an evaluation, rewards) gives a :class:`~megatron_apriel.generate.conversation.Question` to a
:class:`~megatron_apriel.generate.answer.Model` and reads its answer whole or as it comes. Only
``transformers_model.py`` imports torch.
"""
