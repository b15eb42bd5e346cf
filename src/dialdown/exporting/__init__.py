"""A plain checkpoint from an intervention: rewriting, verification, deltas, the card (METHOD
§7).
"""
