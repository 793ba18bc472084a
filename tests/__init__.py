"""The tests of headscope."""
