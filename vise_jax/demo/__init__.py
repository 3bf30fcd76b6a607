"""The demo corpus: simulated posts with images, comments and reactions."""
