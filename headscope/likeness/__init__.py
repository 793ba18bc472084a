"""Likeness: how alike heads are, in pairs, clusters and maps. It knows nothing of what a head is worth."""
