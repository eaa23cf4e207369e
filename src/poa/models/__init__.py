"""Networks by name, runs on disk, and trained weights to start from."""
