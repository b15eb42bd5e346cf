"""A language model and its MLP neurons: loading, architecture facts, tokens, decoding (METHOD
§1).
"""
