"""Weights on disk: where they come from, how they get here, how they are read."""
