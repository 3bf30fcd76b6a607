"""Protocols: how a task is solved on top of an encoder (Sec. 4.3)."""
