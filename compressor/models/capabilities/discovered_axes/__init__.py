"""Cuttable axes, discovered from one run of a module: a dependency graph of single channels."""
