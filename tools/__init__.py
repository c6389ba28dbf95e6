"""What checks the book beyond its tests: `python -m tools.claims`."""
