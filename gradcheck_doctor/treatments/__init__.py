"""Cures as source edits: each planner turns a prescription into edits of exact spans, or refuses with its reason."""
