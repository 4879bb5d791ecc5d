"""Half precision and 8 bits in the graph itself, and proof that they are there."""
