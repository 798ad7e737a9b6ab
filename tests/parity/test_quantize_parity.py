"""NF4 with double quantisation against bitsandbytes' code on the CPU, to the bit; int8 against numpy."""
import os
import pathlib
import subprocess

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release")) / "tests/quantize_probe"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pack(weight, kind, folder):
    save_file({"weight": weight.contiguous()}, folder / "in.safetensors")
    done = subprocess.run([PROBE, folder / "in.safetensors", folder / "out.safetensors", kind], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def matrix(shape, dtype, seed=0):
    """As trained weights are: rows of different sizes, a few outliers, some zeros."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(shape, generator=generator) * 0.02
    out *= torch.rand(shape[0], 1, generator=generator) * 2 + 0.1
    out.view(-1)[torch.randint(out.numel(), (3,), generator=generator)] = 1.5
    out[0] = 0
    return out.to(DTYPES[dtype])


def one_block_a_row(weight):
    """The same blocks. Where blocks go over the ends of rows, bitsandbytes' kernel for AVX-512 gives other numbers than
    its code for other CPUs."""
    return weight.reshape(-1, 64)


@pytest.fixture(scope="module")
def map_of_maxima(tmp_path_factory):
    return pack(matrix((4, 64), "float32"), "nf4", tmp_path_factory.mktemp("map"))["map"]


def test_the_map_of_maxima_is_bitsandbytes(map_of_maxima):
    """Theirs is made of rounded steps: some entries differ in the last bit."""
    theirs = bnb.create_dynamic_map()
    difference = (map_of_maxima - theirs).abs()
    assert (difference <= theirs.abs() * 2**-22).all()
    assert len(set(map_of_maxima.tolist())) == 256


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 64), (96, 352), (352, 130), (1000, 640)], ids=str)
def test_nf4_is_bitsandbytes_to_the_bit(tmp_path, map_of_maxima, shape, dtype):
    weight = matrix(shape, dtype)
    ours = pack(weight, "nf4", tmp_path)
    codes, state = bnb.quantize_4bit(one_block_a_row(weight), blocksize=64, quant_type="nf4", compress_statistics=False)
    assert torch.equal(ours["codes"].to(torch.uint8), codes.flatten())

    # The second level: their arithmetic with our map, which is theirs but for last bits.
    offset = state.absmax.double().mean().float()
    assert ours["offset"].item() == offset.item() and abs(state.absmax.mean() - offset) <= 2e-7 * offset
    bounds = (map_of_maxima[:-1] + map_of_maxima[1:]) / 2
    centred = state.absmax - offset
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % 256)).view(-1, 256)
    scales = blocks.abs().amax(1)
    maxima = torch.bucketize(blocks * (1.0 / scales)[:, None], bounds).flatten()[:len(centred)]
    assert torch.equal(ours["scales"], scales)
    assert torch.equal(ours["maxima"].long(), maxima)

    # Back: their dequantisation of what both levels hold.
    state.absmax = (map_of_maxima[maxima] * scales.repeat_interleave(256)[:len(centred)]) + offset
    for name, type_ in DTYPES.items():
        state.dtype = type_
        assert torch.equal(ours[name], bnb.dequantize_4bit(codes, state).view(shape)), name


@pytest.mark.parametrize("shape", [(96, 352), (1000, 640)], ids=str)
def test_what_bitsandbytes_itself_makes_of_it_is_as_good(tmp_path, shape):
    """Its double quantisation as it is called, map and all: the same matrix up to a few maxima's last steps."""
    weight = matrix(shape, "float32", seed=1)
    ours = pack(weight, "nf4", tmp_path)["float32"]
    packed = bnb.quantize_4bit(one_block_a_row(weight), blocksize=64, quant_type="nf4", compress_statistics=True)
    theirs = bnb.dequantize_4bit(*packed).view(shape)
    error = [(back - weight).norm() / weight.norm() for back in (ours, theirs)]
    print(f"{shape}: relative error {error[0]:.5f}, bitsandbytes {error[1]:.5f}, "
          f"between them {(ours - theirs).norm() / weight.norm():.1e}")
    assert abs(error[0] - error[1]) < 1e-4 and 0.03 < error[0] < 0.12
    assert (ours - theirs).norm() / weight.norm() < 5e-3


def test_an_odd_number_of_elements(tmp_path):
    """Half a byte too many means 0; a last block that is not full is scaled as the others are."""
    weight = matrix((7, 9), "float32", seed=2)[:, :]
    ours = pack(weight, "nf4", tmp_path)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    assert len(ours["codes"]) == 32 and int(ours["codes"][-1]) & 15 == 7
    values = state.code[torch.stack([codes.flatten() >> 4, codes.flatten() & 15], 1).flatten()[:63].long()]
    assert (ours["float32"].flatten() - values * state.absmax).abs().max() <= 1e-6 * weight.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (96, 352)], ids=str)
def test_int8_is_numpys(tmp_path, shape, dtype):
    weight = matrix(shape, dtype, seed=3)
    ours = pack(weight, "int8", tmp_path)
    x = weight.float().numpy()
    maxima = np.abs(x).max(1, keepdims=True)
    codes = np.rint(x * (np.float32(127) / np.maximum(maxima, np.float32(1e-30))))
    scales = maxima / np.float32(127)
    assert codes.dtype == scales.dtype == np.float32 and np.abs(codes).max() <= 127
    assert np.array_equal(ours["codes"].numpy(), codes)
    assert np.array_equal(ours["scales"].numpy(), scales[:, 0])
    assert np.array_equal(ours["float32"].numpy(), codes * scales)
    assert torch.equal(ours["bfloat16"], torch.from_numpy(codes * scales).bfloat16())
