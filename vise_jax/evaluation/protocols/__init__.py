"""Protocols: evaluators that solve a task on top of an encoder (Sec. 4.3)."""
