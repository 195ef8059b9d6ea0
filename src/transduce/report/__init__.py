"""Comparisons of trained systems: costs of decoding, figures pooled over seeds, pictures, a page."""
