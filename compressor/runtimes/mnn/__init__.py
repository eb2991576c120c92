"""MNN, Alibaba's runtime for phones."""
