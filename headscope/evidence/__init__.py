"""Evidence: what one pass and one sweep say of every head, and what of it holds on documents that chose nothing."""
