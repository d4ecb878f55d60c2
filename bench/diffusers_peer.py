"""The same work in PyTorch with diffusers, in a process that does not import ddim_jax.

Eager, or with the argument "compiled" the network by `torch.compile`.

Each line of the standard input is a JSON object {"call": NAME, …arguments}; each line of the
output is the JSON of its result. The loops are those of diffusers: DDIMPipeline's for sampling,
and its example of unconditional training, with Adam and EMAModel.
"""

import json
import os
import sys
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
# Keep the libraries' own output out of the answers.
answers, sys.stdout = sys.stdout, sys.stderr

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DDIMScheduler, UNet2DModel  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402


def load(peer: dict[str, Any], folder: str) -> dict[str, Any]:
    """Load the network from a folder that save_diffusers wrote."""
    torch.manual_seed(0)
    model = UNet2DModel.from_pretrained(folder)
    if "compiled" in sys.argv:
        # Else PyTorch would compile the next network's shapes as variables, and in the end no more.
        torch.compiler.reset()
        model = torch.compile(model, dynamic=False)
    peer["model"] = model
    peer["optimizer"] = None
    return {
        "parameters": sum(leaf.numel() for leaf in peer["model"].parameters()),
        "threads": torch.get_num_threads(),
        "process": os.getpid(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def scheduler(steps: int) -> DDIMScheduler:
    """T = 1000 and the linear β of the paper; t = 1, 1 + T/S, … in our counting."""
    process = DDIMScheduler(
        1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="leading"
    )
    process.set_timesteps(steps)
    return process


def forward(peer: dict[str, Any], file: str, count: int) -> dict[str, Any]:
    """Calls of the network on x and t from a file."""
    arrays = np.load(file)
    x, t = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["t"]).long()
    model = peer["model"].eval()
    with torch.inference_mode():
        start = time.perf_counter()
        for _ in range(count):
            model(x, t)
        seconds = time.perf_counter() - start
    return {"seconds": seconds / count}


def sample(peer: dict[str, Any], file: str, steps: int, out: str = "") -> dict[str, Any]:
    """DDIM, η = 0, from the noise in a file."""
    x = torch.from_numpy(np.load(file)["x"])
    model, process = peer["model"].eval(), scheduler(steps)
    with torch.inference_mode():
        start = time.perf_counter()
        for t in process.timesteps:
            x = process.step(model(x, t).sample, t, x, eta=0.0).prev_sample
        seconds = time.perf_counter() - start
    if out:
        np.save(out, x.numpy())
    return {"seconds": seconds}


def gradient(peer: dict[str, Any], file: str, out: str) -> dict[str, Any]:
    """The ε-MSE on x_t, t and ε from a file, without dropout; its gradient in the first layer."""
    arrays = np.load(file)
    x, t, noise = (torch.from_numpy(arrays[name]) for name in ("x", "t", "noise"))
    model = peer["model"].eval()
    model.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x, t.long()).sample, noise)
    loss.backward()
    np.save(out, model.conv_in.weight.grad.numpy())
    model.zero_grad()
    return {"loss": loss.item()}


def train(peer: dict[str, Any], file: str, steps: int) -> dict[str, Any]:
    """Training steps: flip, noise, ε-MSE, clipped gradient, Adam, EMA."""
    images = torch.from_numpy(np.load(file)["x"])
    model, process = peer["model"].train(), scheduler(10)
    if peer["optimizer"] is None:
        peer["optimizer"] = torch.optim.Adam(model.parameters(), lr=1e-6)
        peer["ema"] = EMAModel(model.parameters(), decay=0.9999)
    optimizer, ema = peer["optimizer"], peer["ema"]
    start = time.perf_counter()
    for _ in range(steps):
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        x_0 = torch.where(mirrored, images.flip(3), images)
        noise, t = torch.randn_like(x_0), torch.randint(0, 1000, (len(x_0),))
        x_t = process.add_noise(x_0, noise, t)
        loss = torch.nn.functional.mse_loss(model(x_t, t).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())
    return {"seconds": (time.perf_counter() - start) / steps}


def overhead(peer: dict[str, Any], steps: int, eta: float, shape: list[int]) -> dict[str, Any]:
    """The scheduler's loop around a network that is one multiplication."""
    x, process = torch.randn(shape), scheduler(steps)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        start = time.perf_counter()
        for t in process.timesteps:
            x = process.step(x * 0.1, t, x, eta=eta, generator=generator).prev_sample
        seconds = time.perf_counter() - start
    return {"seconds": seconds / steps}


def main() -> None:
    """Answer until the input ends."""
    peer: dict[str, Any] = {}
    calls = {call.__name__: call for call in (load, forward, sample, gradient, train, overhead)}
    for line in sys.stdin:
        request = json.loads(line)
        result = calls[request.pop("call")](peer, **request)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
