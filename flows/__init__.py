"""Order and hand-over of the stages, and the command line."""
