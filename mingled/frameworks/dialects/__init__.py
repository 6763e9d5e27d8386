"""Other dialects of the one config: what JAX, TensorFlow, Open MPI and others read."""
