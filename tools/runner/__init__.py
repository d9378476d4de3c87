"""Runs notebooks as tests. What each module is about is in tools/README.md."""
