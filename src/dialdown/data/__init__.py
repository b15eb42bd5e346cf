"""Texts and models as files: what is embedded, on the hub or on this disk, read whole or
refused.
"""
