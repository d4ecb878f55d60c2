"""The paper's mathematics: arrays in, arrays out; no network, no files.

Conventions that every function here follows, stated once:

- Eq. n is an equation of the DDIM paper (arXiv:2010.02502); (n) is one in the module docstring.
- `alpha_bar` is ᾱ_0 … ᾱ_T, shape (T+1,), strictly decreasing, with ᾱ_0 = 1 for clean data. It is
  DDPM's ᾱ; the DDIM paper writes α.
- Noisy times are 1 … T, and 0 is data. A reverse step goes from t to s < t. Only a `Denoiser` knows
  that networks are conditioned on t − 1. A sub-sequence τ has S strictly increasing times.
- Arrays with one value per step, (S,), are in sampling order: row 0 is the noisiest step, and the
  last row goes to s = 0.
- A step has two standard deviations: `sigma`, under the square root in the mean, and `noise`,
  which multiplies the fresh Gaussian. Each is one number, or one per step.
- Images are NHWC, float32, in [−1, 1], but any shape (B, …) will do. A coefficient is a number, or
  one per image, (B,).
- Schedules are NumPy float64 on the host. They are cast once, where they enter a compiled program.
- A seed is an integer in 0 … 2³²−1. Each image has its own threefry key, folded from the seed and
  its index, so random numbers depend on what they are for and not on what was drawn before.
- Errors are ValueErrors, raised on the host before compilation. Traced values are not checked.
"""
