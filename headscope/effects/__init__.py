"""Effects: metrics, and what a change to heads does to them. It knows how a model answers, and nothing of scores."""
