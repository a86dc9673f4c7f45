"""Least squares, eigenvectors and banded systems."""
