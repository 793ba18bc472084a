"""Watching: hooks in, hooks out; look at tensors, or run statistics over text. It changes nothing of a model."""
