"""Recipes: scripts that make gated networks, and the files they need."""
