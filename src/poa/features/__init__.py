"""Features of images: extracted, several layers in one row, written to files."""
