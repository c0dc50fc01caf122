"""What a round is made of: stages, their strategies, tables, and what runs and records them.

An edit of this file does not make stages stale.
"""
