"""The fields of a record: what becomes of each, which order them, and which are refused or counted. No torch."""
