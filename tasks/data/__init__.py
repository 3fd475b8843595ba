"""Data: any real file in, checked rows of one form out. Free of Prefect, and of torch and its kin."""
