"""Rows that name media files (images, audio, point clouds, video): records, scan, cache, writing and relabelling.

A modality brings a `MediaKind` (how a file is decoded and what its columns are called), a `Transform` (how decoded
media become tensors of one size) and an encoder of latents; nothing here knows what is in the files.
"""
