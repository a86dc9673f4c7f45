"""Euclidean projections onto sets with a structure of their own."""
