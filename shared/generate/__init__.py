"""Shared generators of images: networks, what steers them, and sampling; thin over MONAI's networks."""
