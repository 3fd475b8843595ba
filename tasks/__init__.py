"""The stages as Prefect tasks, one public task a file; what runs in the training process lies in `tasks.core`."""
