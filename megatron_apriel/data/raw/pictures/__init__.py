"""Pictures of a record: where they stand, what stands for them in a text, and their bytes and pixels. No torch."""
