"""Folder of a hospital in, de-identified store out.

Nothing is imported here: who only reads a store must not load pydicom.
"""
