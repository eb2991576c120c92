"""The data source ``image-text``: conversations about images, through a checkpoint's own processor."""
