"""Formats: how the rows of a source are read, recognised by their columns or named in the recipe."""
