"""What a stage would need and take: memory, time, layouts, the dry run. From shapes and stated rates; no torch."""
