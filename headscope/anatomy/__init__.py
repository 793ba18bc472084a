"""Anatomy: where a model's heads are, read off by a probe, and routes that overhear attention. It measures nothing."""

from headscope.anatomy.discovery import discover
from headscope.anatomy.route import ROUTES, Call, Place, Route

__all__ = ["ROUTES", "Call", "Place", "Route", "discover"]
