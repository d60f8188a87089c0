"""What each operator does to channel ids, and what it costs; importing it fills the table."""

from . import elementwise, layers, products, reductions, shapes, spatial

__all__ = ['elementwise', 'layers', 'products', 'reductions', 'shapes', 'spatial']
