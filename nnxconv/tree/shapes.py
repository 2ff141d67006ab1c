"""Shapes, and regions of them."""

from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]
Region: TypeAlias = tuple[slice, ...]
"""A start and a stop on every axis."""
