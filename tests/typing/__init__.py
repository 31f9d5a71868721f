"""Checked by pyright and mypy, never run: what users may and may not write."""
