"""Conversations in the forms that data sets have: OpenAI, transformers, ShareGPT and others."""
