"""Tables, figures and pages of results, clusters and runs."""
