"""Side by side with a plain TRL script: the same stages, data, steps and hyperparameters."""
