"""Pretrained text-to-image pipelines as sources of attention: a small adapter per family."""
