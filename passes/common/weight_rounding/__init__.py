"""Rounding of weights with the least error of the results, given the second moments of inputs."""
