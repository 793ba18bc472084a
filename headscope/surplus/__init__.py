"""Surplus: how many heads a layer is worth, and how few of them give back all. It takes nothing out."""
