"""What may be wrong with the images of a set: ``poa doctor``."""
