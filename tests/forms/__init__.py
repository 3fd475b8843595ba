"""Rows in every format with what they come to, rows that are refused, and what real files are read as."""
