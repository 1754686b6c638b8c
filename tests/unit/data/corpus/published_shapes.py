"""Records in the shapes of public data sets and peers' formats, each with what must become of it.

The words are made up; fields and nesting are those of the sets that are named. ``red.png``, ``green.png`` and
``blue.png`` lie beside every file.
"""

from __future__ import annotations

from tests.unit.data.corpus.published_logs import LOGS
from tests.unit.data.corpus.published_pictures import PICTURES
from tests.unit.data.corpus.published_reasoning import REASONING
from tests.unit.data.corpus.published_set import Published
from tests.unit.data.corpus.published_texts import TEXTS
from tests.unit.data.corpus.published_tools import TOOLS

TABLES = (PICTURES, TEXTS, REASONING, TOOLS, LOGS)
PUBLISHED: dict[str, Published] = {name: case for table in TABLES for name, case in table.items()}
