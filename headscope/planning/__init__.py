"""Planning: which heads may go, from tables and from what they cost together. Nothing here cuts."""

from headscope.planning.planner import PLANNERS, Planner, plan

__all__ = ["PLANNERS", "Planner", "plan"]
