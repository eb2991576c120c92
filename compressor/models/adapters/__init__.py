"""Adapters in the layout of PEFT: the base they refer to, their config and their weights."""
