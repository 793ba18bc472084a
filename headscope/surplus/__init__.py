"""Surplus: how many of a layer's heads would suffice to give back what all of them write. It takes nothing out."""
