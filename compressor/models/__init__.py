"""Models: families, capabilities, checkpoints. Importing it loads no torch."""

from compressor.models.torchvision_operators import declare_on_import

declare_on_import()
