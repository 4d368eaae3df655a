"""Calibration: sampling texts, accumulating statistics, walking a model block by block."""
