"""The verdict: the tables of one analysis, and what holds of them where nothing was chosen. It draws no page."""
