"""Frozen networks that turn pictures and texts into embeddings."""
