"""Tests that need a GPU; elsewhere they are skipped. `pytest tests/cuda` on such a machine."""
