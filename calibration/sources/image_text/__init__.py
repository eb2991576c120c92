"""Data source ``image-text``: conversations about images, for vision-language models."""
