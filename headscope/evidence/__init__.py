"""Evidence: what one pass and one sweep say, and what holds on documents that chose nothing. It draws no page."""
