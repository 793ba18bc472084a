"""Support: registries, folders that appear whole, progress, numbers as words. It knows nothing of heads."""
