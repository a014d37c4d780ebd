"""Runs that are killed and restarted must end with the weights of an uninterrupted run."""
