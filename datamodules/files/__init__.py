"""Rows of files: readers, splits and checks."""
