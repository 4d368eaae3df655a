"""Measurements of a model that explain a method, apart from compressing it."""
