"""Raw files of every published kind, found in directories and read as a stream of small blocks. No torch."""
