"""A digit classifier with JAX on several processes, one on each node.

    python train.py                                                  # mingled.jax finds the others
    mingle-wait --job digits --world-size 2 --for jax -- python train.py     # the launcher has

Each process holds its share of every batch; the arrays are sharded over all processes' devices, so
XLA itself puts the sum of the gradients between them.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a digit classifier with JAX.")
    parser.add_argument("--job", default="digits", help="the same on every node")
    parser.add_argument("--world-size", type=int, default=2, help="how many processes there are")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=96, help="images a step, of all")
    options = parser.parse_args()
    meet(options.job, options.world_size)
    index, count = jax.process_index(), jax.process_count()
    say(f"{count} processes, {jax.device_count()} devices ({jax.devices()[0].platform})")

    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    (x, y), (test_x, test_y) = digits()
    # The same seed, so the same weights, everywhere.
    weights = jax.device_put(network(jax.random.key(1)), whole)
    velocity = jax.tree.map(jnp.zeros_like, weights)
    size = options.batch_size // jax.device_count() * jax.device_count()
    for epoch in range(1, options.epochs + 1):
        order = np.random.default_rng(epoch).permutation(len(y))
        losses = []
        for chosen in order[: len(y) // size * size].reshape(-1, size):
            mine = np.split(chosen, count)[index]
            batch = [jax.make_array_from_process_local_data(split, a[mine]) for a in (x, y)]
            weights, velocity, loss = step(weights, velocity, *batch)
            losses.append(loss)
        say(f"epoch {epoch:2d}/{options.epochs}  loss {np.mean(jax.device_get(losses)):.4f}")

    guess = np.asarray(jnp.argmax(logits(jax.device_get(weights), test_x), axis=1))
    say(f"test accuracy {np.mean(guess == test_y):.1%}")
    jax.distributed.shutdown()  # waits for the others


def meet(job: str, world_size: int) -> None:
    """Connect the processes: by what `mingle-wait --for jax` has set, or by mingled itself."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    else:
        import mingled.jax

        mingled.jax.initialize(job, world_size=world_size)


@jax.jit
def step(weights: list, velocity: list, x: jax.Array, y: jax.Array) -> tuple:
    """One of gradient descent with momentum; the loss is the mean over all processes' images."""
    loss, slopes = jax.value_and_grad(mean_loss)(weights, x, y)
    velocity = jax.tree.map(lambda v, s: 0.9 * v - 0.1 * s, velocity, slopes)
    return jax.tree.map(jnp.add, weights, velocity), velocity, loss


def mean_loss(weights: list, x: jax.Array, y: jax.Array) -> jax.Array:
    chances = jax.nn.log_softmax(logits(weights, x))
    return -jnp.mean(jnp.take_along_axis(chances, y[:, None], axis=1))


def logits(weights: list, x: jax.Array) -> jax.Array:
    (w1, b1), (w2, b2) = weights
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def network(key: jax.Array) -> list:
    """One hidden layer: pairs of a matrix and a vector."""
    first, second = jax.random.split(key)
    return [
        (jax.random.normal(first, (64, 128)) * (2 / 64) ** 0.5, jnp.zeros(128)),
        (jax.random.normal(second, (128, 10)) * (1 / 128) ** 0.5, jnp.zeros(10)),
    ]


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's 1797 scans of 64 pixels, and their labels; every fifth is held out."""
    bunch = load_digits()
    x, y = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int32)
    held_out = np.arange(len(y)) % 5 == 0
    return (x[~held_out], y[~held_out]), (x[held_out], y[held_out])


def say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    main()
