"""Data source ``phone-bed``: screens of real icons, and commands in text or speech."""
