"""Anatomy: where a model's attention heads are, read off the model by a probe. It measures nothing."""

from headscope.anatomy.discovery import discover
from headscope.anatomy.route import ROUTES, Call, Route

__all__ = ["ROUTES", "Call", "Route", "discover"]
