"""Pixels in, pixels out; knows neither DICOM nor networks."""
