"""Records of every published shape, put together from their turns and pictures into documents. No torch."""
