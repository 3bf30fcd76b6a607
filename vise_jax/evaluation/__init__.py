"""Evaluate encoders on downstream tasks (Sec. 4)."""
