"""From an answer to a verdict: right, wrong or none, with a reason.

One set of verdicts serves whoever needs one: evaluation, curation and rewards::

    Answer (generate)  ->  responses: the final response only  ->  a scorer  ->  Verdict

``letters``, ``boxed``, ``numbers``, ``mmmu_pro`` and ``mathvista`` find an answer in a text, each in time that is
linear in its length. ``math_answers``, ``instructions`` and ``conversations`` ask a process of their own
(``line_process``), which a time limit ends; ``judge`` asks a model. Programs run in the ``sandbox`` and nowhere else.

The files ``*_process.py`` are such processes. Two of them run in environments of their own, which ``make scorers``
makes, and import nothing of this project.
"""
