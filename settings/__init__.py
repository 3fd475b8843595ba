"""Facts about this machine, and the recipes and data that come with the pipeline."""
