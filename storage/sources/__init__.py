"""Where images come from when no catalog is asked: directories, lists and arrays, as streams."""
