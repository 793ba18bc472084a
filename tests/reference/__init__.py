"""Textbook forms in NumPy float64, computed from the raw positions; independent of headscope."""
