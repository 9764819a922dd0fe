"""Compiled arithmetic: matrices, attention, elementary functions. Knows no models and no files."""
