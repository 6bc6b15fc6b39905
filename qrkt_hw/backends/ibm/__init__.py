"""Backends of the IBM Quantum Platform."""
