"""Evaluation and calibration data behind one setting: the hub, a local folder, or embedded."""
