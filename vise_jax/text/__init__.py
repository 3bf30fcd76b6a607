"""Text to tokens and token vectors: masking, tokenization, word vectors, static embeddings."""
