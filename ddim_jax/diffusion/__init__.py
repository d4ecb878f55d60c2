"""The paper's mathematics: arrays in, arrays out; no network, no files, no Flax."""
