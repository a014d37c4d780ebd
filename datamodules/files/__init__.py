"""Rows of files: readers, splits, columns, and where results are cached."""
