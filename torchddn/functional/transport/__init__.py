"""Entropic optimal transport, of matrices and of clouds."""
