"""Preference pairs, DPO, and neuron gains with their Fisher information (METHOD §8)."""
