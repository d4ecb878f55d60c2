"""What the tests of training share."""


def count_steps(*_, **__):
    """In place of a run's `prepare_step`: steps that are counted, and change nothing else."""

    def step(state, *_):
        done = state.step + 1
        return state._replace(step=done), {"loss": 1 / done, "grad_norm": 2 / done}

    return step
