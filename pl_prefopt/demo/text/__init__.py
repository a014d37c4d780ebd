"""The demo of text."""
