"""The paper's tables and figures: what they consist of, and what has to be run for them."""
