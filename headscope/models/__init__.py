"""Models: by name, folder or function; the paper's reference; two that come as packages. It measures nothing."""
