"""From movies on disk to batches; import what you need from its modules."""
