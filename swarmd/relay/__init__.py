"""Passing streams on to nodes that cannot be dialled: what a relay grants, and what it does."""
