"""The recogniser: image in, mask and diagnosis out."""
