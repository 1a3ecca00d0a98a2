"""Dialects of diffusers."""

DIALECTS = []
