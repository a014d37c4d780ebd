"""Rows that name media files: records, scan, cache, shards, writing and relabelling."""
