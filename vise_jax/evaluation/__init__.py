"""What an encoder's features are worth on downstream tasks (Sec. 4)."""
