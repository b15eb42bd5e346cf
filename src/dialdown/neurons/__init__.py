"""What is known of every neuron: directions, mean activations, the neuron table, its statistics
(METHOD §2, §3).
"""
