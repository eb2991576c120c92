"""Modules of the user's own, and models of timm and torchvision."""
