"""Runs notebooks as tests: each in a fresh kernel of this Python, any failure reported so that it can be found."""
