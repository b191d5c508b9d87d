"""From an image file to a vector: read, decode, forward pass.  Knows nothing of storage."""
