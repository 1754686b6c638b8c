"""From benchmarks to a table: loading, asking and scoring as steps of their own, on plain files.

::

    benchmarks -> items.jsonl -> asking -> answers-1.jsonl -> scoring -> verdicts-1.jsonl -> report.json, .md, .html

One line of each file is one item. Every step goes on where it was stopped, and does what is not done: an item whose
question changed is asked again, an answer whose scorer changed is scored again, and nothing else. A model is known as a
directory or an address only.
"""
