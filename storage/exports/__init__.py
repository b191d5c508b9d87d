"""Vectors in the formats of other tools.  Writing one needs neither a catalog nor a network."""
