"""One file for each pre-training method."""
