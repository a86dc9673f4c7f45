"""Quadratic, linear and cone programs."""
