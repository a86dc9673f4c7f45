"""Machinery of hand-made nodes: from the door to the record."""
