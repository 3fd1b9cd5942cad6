"""Anthropic's Messages API: what clients and agents that were made for it send, and what they read."""
