"""Serving models over HTTP: an OpenAI-compatible API and a web playground.

`scheduler` lets many requests share one model, and knows nothing of HTTP; the other modules put the API before it.
"""
