"""Classes of transformers without a row in the tables: described by building them, not by name."""
