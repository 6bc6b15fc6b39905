"""Figures from recorded numbers."""
