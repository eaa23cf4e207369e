"""Detection of objects and instance segmentation."""
