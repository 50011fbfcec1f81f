"""TensorFlow's records, as far as checkpoints need them."""
