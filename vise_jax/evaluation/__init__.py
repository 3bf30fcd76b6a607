"""Measure an encoder's features on downstream tasks (Sec. 4)."""
