"""Vision-language classes that are traced: a tower, and a decoder that takes image embeddings."""
