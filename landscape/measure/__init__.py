"""Measurements: a problem in, a record with its evidence out."""
