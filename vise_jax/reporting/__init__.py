"""From results files to what people read."""
