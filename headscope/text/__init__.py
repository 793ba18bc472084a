"""Text: from files and folders to documents, and from documents to batches. It knows nothing of heads."""
