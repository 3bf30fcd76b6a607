"""One step of training, compiled for a mesh of devices."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vise_jax.encoder import imagenet_preprocessing, normalize
from vise_jax.training import sharding
from vise_jax.training.losses import engagement_loss
from vise_jax.training.optimizer import learning_rate, sgd
from vise_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def flip_at_random(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirror each image [B, H, W, C] with probability 1/2."""
    flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def make_train_step(graphdef: nnx.GraphDef, config: ConfigDict, steps: int, mesh: Mesh) -> TrainStep:
    """Compile the training step.

    Args:
        graphdef: structure of the model, as `state.create` split it off.
        config: the whole configuration.
        steps: length of the whole run (the learning rate depends on it).
        mesh: from `sharding.data_mesh`.

    Returns:
        From the state, which is donated, and a batch with `images` (uint8 [B, S, S, 3]), `comment_labels` (int32
        [B, M]), `comment_weights` (float32 [B, M]) and `reaction_label` (int32 [B]) to the next state and the
        metrics of this step: `loss`, `loss_comments`, `loss_reactions`, `learning_rate`, float32 scalars.
    """
    optimizer = sgd(config.training, steps)
    rate = learning_rate(config.training, steps)
    preprocessing = imagenet_preprocessing(config.data.image_size)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        images = batch["images"]
        if config.data.flip:
            key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
            images = flip_at_random(images, key)
        images = normalize(images, preprocessing)

        def loss_of(params: nnx.State) -> tuple[jax.Array, tuple[dict[str, jax.Array], nnx.State]]:
            model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
            logits, _ = model(images, train=True)
            loss, terms = engagement_loss(logits, batch)
            return loss, (terms, nnx.state(model, nnx.BatchStat))

        (loss, (terms, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "learning_rate": rate(state.step)}
        metrics |= {f"loss_{head}": term for head, term in terms.items()}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    everywhere, split = sharding.replicated(mesh), sharding.split(mesh)
    return jax.jit(
        train_step,
        in_shardings=(everywhere, split),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
