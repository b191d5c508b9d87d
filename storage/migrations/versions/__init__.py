"""One module for each change of the schema, named like a sentence."""
