"""What takes seconds to load, and is loaded only when it is needed."""

__all__ = ["HEAVY"]

HEAVY = ("torch", "transformers", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "seaborn", "pyarrow", "jinja2")
