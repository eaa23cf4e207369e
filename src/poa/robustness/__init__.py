"""Accuracy on corrupted, occluded and recomposed images."""
