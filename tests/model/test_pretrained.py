"""Published weights: both layouts against the recorded outputs, a round trip, and every way in which a file can be wrong."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddim_jax.config import DiffusionConfig
from ddim_jax.model import UNetConfig, build_unet, load_pretrained, save_diffusers, unet_apply
from ddim_jax.model.diffusers import schedule_of_diffusers, unet_to_diffusers
from ddim_jax.model.torch_file import read_torch_file
from tests.model.torch_writer import Tensor, fake_torch, write_legacy, write_zip

REFERENCE = Path(__file__).parent.parent / "reference"
OFFICIAL, DIFFUSERS = (
    np.load(REFERENCE / f"unet_{layout}_layout.npz") for layout in ("ddpm", "diffusers")
)
CONFIG = UNetConfig(
    16, 3, channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(8,), groups=8
)
HINTS = {"image_size": 16, "groups": 8}  # what an official file does not tell

pytestmark = pytest.mark.usefixtures("optimised")


def weights(reference):
    return {
        name.removeprefix("weights/"): reference[name]
        for name in reference.files
        if name.startswith("weights/")
    }


@pytest.fixture
def torch(monkeypatch):
    return fake_torch(monkeypatch)


@pytest.fixture(scope="module")
def epsilon():
    """The network's output for the reference input, compiled once."""
    apply = jax.jit(unet_apply(CONFIG))

    def run(params, reference):
        out = apply(params, reference["x"].transpose(0, 2, 3, 1), reference["t"].astype(np.int32))
        return np.asarray(out).transpose(0, 3, 1, 2)

    return run


def diffusers_folder(path, tensors, suffix="safetensors", torch=None, **changes):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(unet_to_diffusers(CONFIG) | changes))
    if suffix == "safetensors":
        save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    else:
        write_zip(path / "diffusion_pytorch_model.bin", OrderedDict(tensors), torch)
    return path


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- the recorded outputs


def test_an_official_state_dict_in_every_container(tmp_path, torch, epsilon):
    tensors = OrderedDict(weights(OFFICIAL))
    save_file(tensors, tmp_path / "a.safetensors")
    write_zip(tmp_path / "b.ckpt", tensors, torch)
    write_legacy(tmp_path / "c.ckpt", tensors, torch)
    # What the official code saves: [model of DataParallel, optimizer, epoch, step, EMA]; the EMA counts.
    model = OrderedDict((f"module.{name}", 0 * tensor) for name, tensor in tensors.items())
    optimizer = {
        "state": {0: {"step": 7, "exp_avg": np.ones(3, np.float32)}},
        "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999)}],
    }
    write_zip(tmp_path / "d.pth", [model, optimizer, 3, 790000, dict(tensors)], torch)
    write_zip(
        tmp_path / "e.pth",
        [OrderedDict((f"module.{n}", w) for n, w in tensors.items()), optimizer, 3, 790000],
        torch,
    )
    for name in ("a.safetensors", "b.ckpt", "c.ckpt", "d.pth", "e.pth"):
        config, params = load_pretrained(tmp_path / name, **HINTS)
        assert config == CONFIG
        assert np.abs(epsilon(params, OFFICIAL) - OFFICIAL["epsilon"]).max() < 2e-5


def test_a_diffusers_folder_in_every_container_with_old_and_new_attention_names(
    tmp_path, torch, epsilon
):
    new = weights(DIFFUSERS)
    old = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): tensor
        for name, tensor in new.items()
    }
    assert len(set(old) - set(new)) == 8 * 4
    folders = [
        diffusers_folder(tmp_path / "new", new),
        diffusers_folder(tmp_path / "old", old),
        diffusers_folder(tmp_path / "bin", old, "bin", torch),
    ]
    diffusers_folder(tmp_path / "pipeline" / "unet", new)
    for folder in [*folders, tmp_path / "pipeline"]:
        config, params = load_pretrained(str(folder))
        assert config == CONFIG
        assert np.abs(epsilon(params, DIFFUSERS) - DIFFUSERS["epsilon"]).max() < 2e-5


def test_half_precision_and_shared_or_transposed_storages(tmp_path, torch):
    tensors = weights(OFFICIAL)
    save_file(
        {name: tensor.astype(np.float16) for name, tensor in tensors.items()},
        tmp_path / "half.safetensors",
    )
    _, half = load_pretrained(tmp_path / "half.safetensors", **HINTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype("float32")}
    np.testing.assert_array_equal(
        half["temb"]["dense"][0]["kernel"], tensors["temb.dense.0.weight"].T.astype(np.float16)
    )
    brain = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    save_file(brain, tmp_path / "brain.safetensors")
    _, params = load_pretrained(tmp_path / "brain.safetensors", **HINTS)
    np.testing.assert_array_equal(
        params["norm_out"]["scale"], brain["norm_out.weight"].astype(np.float32)
    )
    numbers = np.arange(24, dtype=np.float32)
    content = {
        "a": Tensor(numbers[:6].reshape(2, 3), numbers, offset=4, stride=(1, 2)),
        "b": Tensor(numbers, numbers),
    }
    write_zip(tmp_path / "views.pt", content, torch)
    views = read_torch_file(tmp_path / "views.pt")
    np.testing.assert_array_equal(views["a"], [[4, 6, 8], [5, 7, 9]])
    np.testing.assert_array_equal(views["b"], numbers)


# ---- out again


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_round_trip_is_bit_for_bit(tmp_path, num_classes):
    config = replace(
        CONFIG,
        num_classes=num_classes,
        dropout=0.25,
        multipliers=(1, 2, 3),
        attention_resolutions=(16, 4),
    )
    shapes = jax.eval_shape(lambda: build_unet(config, 0)[1])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    diffusion = DiffusionConfig(500, "cosine", zero_terminal_snr=True, prediction="v")
    save_diffusers(tmp_path / "out", config, params, diffusion)
    again, loaded = load_pretrained(tmp_path / "out")
    assert again == config
    equal(params, loaded)
    assert schedule_of_diffusers(tmp_path / "out") == diffusion
    save_diffusers(tmp_path / "twice", again, loaded)
    one, two = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors")
        for name in ("out", "twice")
    )
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_without_a_scheduler_the_process_is_the_papers(tmp_path):
    assert schedule_of_diffusers(tmp_path) == DiffusionConfig()
    (tmp_path / "scheduler_config.json").write_text('{"beta_schedule": "scaled_linear"}')
    with pytest.raises(ValueError, match=r"'scaled_linear'.*known are"):
        schedule_of_diffusers(tmp_path)


# ---- what is refused


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_missing_extra_and_misshapen_tensors_by_name(tmp_path, layout):
    official = layout == "official"
    whole = weights(OFFICIAL if official else DIFFUSERS)
    name = "up.1.attn.1.k.weight" if official else "up_blocks.0.attentions.1.to_k.weight"

    def load(tensors):
        if official:
            save_file(tensors, tmp_path / "x.safetensors")
            return load_pretrained(tmp_path / "x.safetensors", **HINTS)
        return load_pretrained(diffusers_folder(tmp_path / "x", tensors))

    with pytest.raises(ValueError, match=rf"lacks the tensor {name}\."):
        load({other: tensor for other, tensor in whole.items() if other != name})
    with pytest.raises(
        ValueError,
        match=r"has, beyond what this network takes, the tensor extra\.weight and 1 more\.",
    ):
        load(whole | {"extra.weight": np.zeros(2, np.float32), "other": np.zeros(2, np.float32)})
    with pytest.raises(
        ValueError, match=rf"has {name} in the shape \(64, 63.*which this network has as \(64, 64"
    ):
        load(whole | {name: whole[name][:, :63]})
    with pytest.raises(ValueError, match=rf"has {name} as int32"):
        load(whole | {name: whole[name].astype(np.int32)})


class Evil:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_ever_run(tmp_path, torch):
    target = tmp_path / "was_run"
    write_zip(
        tmp_path / "zip.pt", {"conv_in.weight": np.zeros(2, np.float32), "x": Evil(target)}, torch
    )
    write_legacy(
        tmp_path / "legacy.pt",
        {"conv_in.weight": np.zeros(2, np.float32), "x": Evil(target)},
        torch,
    )
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(target)))
    (tmp_path / "magic.pt").write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(Evil(target))
    )
    diffusers_folder(tmp_path / "folder", {"x": Evil(target)}, "bin", torch)
    for name in ("zip.pt", "legacy.pt", "bare.pt", "magic.pt", "folder"):
        with pytest.raises(
            ValueError,
            match=r"it names posix\.system, which is no part of a tensor.*nothing in it was run",
        ) as error:
            load_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not target.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes())
    assert target.exists()  # the test's own file is a working attack


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"ctorch.serialization\nload\n.",
        b"ccollections\nnamedtuple\n.",
        b"\x80\x04\x8c\x05torch\x8c\x12FloatStorage.upper\x93.",  # an attribute of a known name
        b"ctorch._utils\n_rebuild_tensor_v2\n(S'x'\nI0\n(t(tI0\nNtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'__code__'\nI1\nsb.",
        b"(S'storage'\nS'f4'\nS'0'\nS'cpu'\nI999999999999\ntQ.",
        b"garbage",
        b"",
    ],
)
def test_hostile_programs_are_refused(tmp_path, program):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", b"\0" * 16)
    with pytest.raises(
        ValueError, match=r"x\.pt (is no PyTorch checkpoint|holds a \w+, not tensors)"
    ) as error:
        load_pretrained(tmp_path / "x.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("offset", "size", "stride"), [(1, (4,), (1,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)), (0, (2,), (1, 1)),
                                                         (3, (2,), (-1,)), (0, (5,), (1,))])  # fmt: skip
def test_a_tensor_reaches_no_further_than_its_numbers(tmp_path, torch, offset, size, stride):
    numbers = np.arange(4, dtype=np.float32)
    write_zip(tmp_path / "x.pt", {"a": Tensor(numbers, numbers, offset, stride, size)}, torch)
    with pytest.raises(ValueError, match="a tensor "):
        load_pretrained(tmp_path / "x.pt")


def test_damaged_and_foreign_files(tmp_path, torch):
    tensors = weights(OFFICIAL)
    write_zip(tmp_path / "zip", tensors, torch)
    write_legacy(tmp_path / "legacy", tensors, torch)
    save_file(tensors, tmp_path / "safe.safetensors")
    for name in ("zip", "legacy", "safe.safetensors"):
        content = (tmp_path / name).read_bytes()
        for length in (0, 1, 100, len(content) // 2, len(content) - 1):
            (tmp_path / f"cut_{name}").write_bytes(content[:length])
            with pytest.raises(
                ValueError, match=rf"cut_{name} (is no PyTorch checkpoint|cannot be read as)"
            ) as error:
                load_pretrained(tmp_path / f"cut_{name}", **HINTS)
            assert "\n" not in str(error.value)
    content = bytearray((tmp_path / "zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped is no PyTorch checkpoint.*CRC"):
        load_pretrained(tmp_path / "flipped", **HINTS)
    write_zip(tmp_path / "packed", tensors, torch, compress=True)
    with pytest.raises(ValueError, match="is compressed, as PyTorch's never are"):
        load_pretrained(tmp_path / "packed", **HINTS)
    write_zip(tmp_path / "words", {"a": "text"}, torch)
    with pytest.raises(ValueError, match="words has a str under 'a', where a tensor should be"):
        load_pretrained(tmp_path / "words")
    for content in ([], 3, {}):
        write_zip(tmp_path / "other", content, torch)
        with pytest.raises(ValueError, match=r"other holds a \w+, not tensors by name"):
            load_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"nowhere cannot be read \(No such file or directory\)"):
        load_pretrained(tmp_path / "nowhere")
    write_zip(tmp_path / "names", {"a.weight": np.zeros(3, np.float32)}, torch)
    with pytest.raises(
        ValueError,
        match=r"lacks the convolution conv_in.weight; it is no UNet in the official layout",
    ):
        load_pretrained(tmp_path / "names")
    save_file(weights(DIFFUSERS), tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match="has diffusers' names; give the folder"):
        load_pretrained(tmp_path / "alone.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "mish"}, "has act_fn = 'mish'; only 'silu' can be read"),
        ({"attention_head_dim": 8}, "has attention_head_dim = 8; only None"),
        ({"freq_shift": 0}, "has freq_shift = 0"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels \[32, 48\]"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types"),
        ({"out_channels": 6}, "6 out_channels"),
        ({"num_class_embeds": 10}, "num_class_embeds = 10"),
        ({"sample_size": None}, r"is no config.json of a UNet2DModel|sample_size None"),
        ({"norm_num_groups": 5}, "--model.channels is 32; it must be a multiple"),
    ],
)
def test_an_architecture_that_is_not_ours(tmp_path, changes, message):
    folder = diffusers_folder(tmp_path / "x", weights(DIFFUSERS), **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_folders_that_are_not_whole(tmp_path):
    with pytest.raises(ValueError, match=r"config.json cannot be read as JSON \(No such file"):
        load_pretrained(tmp_path)
    folder = diffusers_folder(tmp_path / "x", weights(DIFFUSERS))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds none of diffusion_pytorch_model.safetensors and"):
        load_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list; it must be an object"):
        load_pretrained(folder)


# ---- live, where PyTorch and diffusers are installed


def test_live_full_size_against_diffusers(tmp_path):
    """Random full-size weights: theirs imported, ours exported, and torch.save's own files of them."""
    real = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    real.manual_seed(0)
    theirs = diffusers.UNet2DModel.from_config(unet_to_diffusers(UNetConfig())).eval()
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = load_pretrained(tmp_path / "theirs")
    assert config == UNetConfig()
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with real.no_grad():
        expected = theirs(real.from_numpy(x), real.tensor([3, 900])).sample.numpy()
    found = jax.jit(unet_apply(config))(
        params, x.transpose(0, 2, 3, 1), np.array([3, 900], np.int32)
    )
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(found).transpose(0, 3, 1, 2) - expected).max() < 2e-5 * max(scale, 1)

    save_diffusers(tmp_path / "ours", config, params, DiffusionConfig())
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours").eval()
    for (name, one), (other, two) in zip(
        theirs.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert real.equal(one, two)
    assert (
        diffusers.DDIMScheduler.from_pretrained(tmp_path / "ours").config.beta_schedule == "linear"
    )

    for legacy in (False, True):
        folder = tmp_path / f"legacy_{legacy}"
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "theirs" / "config.json").read_text())
        file = folder / "diffusion_pytorch_model.bin"
        real.save(theirs.state_dict(), file, _use_new_zipfile_serialization=not legacy)
        equal(load_pretrained(folder)[1], params)


def test_live_the_writer_of_these_tests_writes_what_pytorch_reads(tmp_path, monkeypatch):
    real = pytest.importorskip("torch", reason="PyTorch is not installed")
    content = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}
    with monkeypatch.context() as patch:
        torch = fake_torch(patch)
        write_zip(tmp_path / "zip", content, torch)
        write_legacy(tmp_path / "legacy", content, torch)
    for name in ("zip", "legacy"):
        loaded = real.load(tmp_path / name, weights_only=True)
        assert all(np.array_equal(loaded[key].numpy(), content[key]) for key in content)
