"""Apply an encoder to images: features, predictions, nearest neighbors."""
