"""Short texts of two classes that methods learn from."""

import numpy as np

RNG = np.random.default_rng(3)
TOXIC = [f"you {''.join(RNG.choice(list('abcdef xyz'), RNG.integers(1, 9)))}!" for _ in range(11)]
CLEAN = [f"the cat {''.join(RNG.choice(list('ghi klm'), RNG.integers(1, 9)))}" for _ in range(14)]
TEXTS = [text for pair in zip(TOXIC, CLEAN, strict=False) for text in pair] + CLEAN[11:]
LABELS = [1, 0] * 11 + [0, 0, 0]
