"""Publishing a checkpoint: a folder for others, with model card, bill of materials, signature and upload."""
