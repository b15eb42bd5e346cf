"""What a row is measured with: toxicity, log-perplexity, KL, F1, intervals (METHOD §6)."""
