"""Data, from raw files to the typed batch.

Once, before a run: ``raw`` reads files and records, ``visual_tasks`` makes records of bare images, ``corpus`` turns
records into tokens and images on disk. In every run: ``loading`` makes batches of corpora.
"""
