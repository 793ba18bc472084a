"""Support: registries, whole folders, progress, numbers as words, running a model. It knows nothing of heads."""
