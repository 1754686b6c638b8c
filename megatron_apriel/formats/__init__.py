"""What lies on disk: shapes, tensor names, safetensors, JSON, kinds of checkpoint, run records, sidecars. No torch."""
