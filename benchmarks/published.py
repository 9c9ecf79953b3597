"""Numbers of the published formulation (arXiv 2503.14858), for the baselines in JAX and in plain torch."""

EMBEDDING_DIM = 64
LAYERS_PER_BLOCK = 4
LEARNING_RATE = 3e-4
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
LOGSUMEXP_PENALTY = 0.1
TANH_EPS = 1e-6
TARGET_ENTROPY_PER_ACTION = -0.5
