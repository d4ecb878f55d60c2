"""What the two command lines share: one sentence for a user's mistake, a traceback for ours."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import jax


def run(command: Callable[[], None]) -> int:
    """Call a command and return its exit status.

    A ValueError that this package raised is about the user's input and is printed as a sentence. One that a library raised
    is a bug of ours and keeps its traceback, like any other exception.
    """
    # Else JAX cuts its own frames out of a traceback, and a bug looks as if it were raised here.
    jax.config.update("jax_traceback_filtering", "off")
    logging.getLogger("absl").setLevel(
        logging.ERROR
    )  # TFDS and Orbax advise there, about choices that were made here
    try:
        command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        if not _raised_here(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _raised_here(error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    home = Path(__file__).parent
    return traceback is not None and Path(traceback.tb_frame.f_code.co_filename).is_relative_to(
        home
    )
