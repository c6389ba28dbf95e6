"""Renders the book with pandoc where Quarto is not at hand: `python -m render`."""
