"""The job of a run as ordinary functions: what is done, in which order, and what is said of it."""
