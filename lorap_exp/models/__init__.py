"""Decoder families, compressed layers, loading and saving."""
