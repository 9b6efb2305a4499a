"""Folder of a hospital in, de-identified store out."""
