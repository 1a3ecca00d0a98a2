"""Dialects of timm."""

DIALECTS = []
