"""The enhancer: degraded image in, enhanced image out."""
