"""Frozen records of what was seen and concluded."""
