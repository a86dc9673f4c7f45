"""Robust pooling of numbers and of points."""
