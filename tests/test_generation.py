"""Labels and guidance belong to an image, whatever batch it is drawn in."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import eta, step_table, trailing_timesteps
from ddim_jax.devices import make_mesh
from ddim_jax.generation import generate, make_sampler

SHAPE = (2, 2, 1)

pytestmark = pytest.mark.usefixtures("optimised")


def network(params, x, t, *, label=None):
    """ε̂ that is another multiple of x for each label; no label is label 9."""
    label = jnp.full(len(x), 9) if label is None else label
    return params * (1 + label.reshape(-1, 1, 1, 1) / 10) * x


@pytest.fixture(scope="module")
def draw(alpha_bar):
    table = step_table(alpha_bar, trailing_timesteps(1000, 4), eta(1.0))
    samplers = {}

    def images(count=6, batch_size=6, guide=False, **options):
        if (batch_size, guide) not in samplers:
            samplers[batch_size, guide] = make_sampler(
                network, alpha_bar, SHAPE, make_mesh(batch_size), guide=guide
            )
        sampler = samplers[batch_size, guide]
        return np.concatenate(
            list(
                generate(sampler, 0.7, table, seed=3, count=count, batch_size=batch_size, **options)
            )
        )

    return images


def test_image_i_has_its_label_in_any_batch(draw):
    whole = draw(labels=(2, 5, 7))
    np.testing.assert_allclose(draw(batch_size=4, labels=(2, 5, 7)), whole, atol=1e-5)
    for label in (2, 5, 7):
        alone = draw(labels=(label,))
        place = (2, 5, 7).index(label)
        np.testing.assert_allclose(whole[place::3], alone[place::3], atol=1e-5)
        assert np.abs(whole - alone).max() > 0.01


def test_guidance_goes_from_no_label_through_the_label_and_beyond(draw):
    conditional, unconditional = draw(labels=(2,)), draw()
    assert np.abs(conditional - unconditional).max() > 0.01
    np.testing.assert_allclose(draw(guide=True, labels=(2,), guidance=1.0), conditional, atol=1e-5)
    np.testing.assert_allclose(
        draw(guide=True, labels=(2,), guidance=0.0), unconditional, atol=1e-5
    )
    # ε̂ is linear in the label here, so guidance 3 from 9 to 2 is label 9 + 3·(2 − 9) = −12.
    np.testing.assert_allclose(
        draw(guide=True, labels=(2,), guidance=3.0), draw(labels=(-12,)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("options", [{"count": 0}, {"batch_size": 0}])
def test_refusals(alpha_bar, options):
    table = step_table(alpha_bar, trailing_timesteps(1000, 4), eta(1.0))
    with pytest.raises(ValueError, match="is 0; it must be 1 or more"):
        next(
            generate(
                lambda *_: None, None, table, seed=0, **({"count": 1, "batch_size": 1} | options)
            )
        )
