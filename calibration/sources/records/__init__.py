"""Records and texts in files: encodings, JSON Lines, JSON, CSV, TSV and parquet."""
