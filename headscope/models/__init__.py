"""Models: by name, from a folder or a function, the paper's reference, and two that come as packages."""
