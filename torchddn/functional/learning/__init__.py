"""Nodes that learn from few examples: classifiers and regressions, fitted inside the network."""
