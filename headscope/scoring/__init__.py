"""Scoring: what one head is worth, from what effects and statistics say. It knows no pairs and no plans."""
