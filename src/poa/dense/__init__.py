"""Dense prediction: maps of several levels from any backbone, and semantic segmentation on top of them."""
