"""Matrices of a run stored in fewer bytes, without training it again."""
