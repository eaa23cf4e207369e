"""From files to batches of augmented views."""
