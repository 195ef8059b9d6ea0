"""Comparisons of trained systems: what decoding costs, figures pooled over seeds, pictures, a page to show."""
