"""The demo of image."""
