"""The commands of ``lookalike``, one small module for each group."""
