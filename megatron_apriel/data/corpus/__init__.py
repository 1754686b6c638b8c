"""From records to a corpus: tokens, the chat format, preparing, and the corpus on disk. No torch."""
