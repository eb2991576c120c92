"""Language models as graphs that generate: built operator by operator, not traced."""
