"""GGUF files against PyPI gguf: metadata, names, shapes and every dequantised element to the bit, for blocks of random
bits and for a real file (scripts/fetch_models.sh)."""
import os
import pathlib
import subprocess

import gguf
import numpy as np
import pytest
from real_files import smollm2

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build" / "release"))
PROBE = BUILD / "tests" / "gguf_probe"
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]


def probe(file, out):
    done = subprocess.run([PROBE, file, out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), np.fromfile(out, dtype=np.float32)


def blocks(rng, kind, rows, row):
    """Random bits; the half-precision scales finite (NaN has no one bit pattern to compare)."""
    per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    bits = rng.integers(0, 256, (rows, row // per_block, size), dtype=np.uint8)
    scales = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}.get(kind, [])
    for at in scales:
        values = rng.standard_normal(bits.shape[:2]).astype(np.float16)
        values.flat[:5] = np.float16([0, -0.0, 6e-8, 65504, -65504])  # zeros, the least subnormal, the largest
        bits[..., at:at + 2] = values[..., None].view(np.uint8)
    if kind in ("F32", "F16", "BF16"):
        values = rng.standard_normal((rows, row)).astype(np.float32)
        if kind == "F32":
            return values
        return values.astype(np.float16) if kind == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return bits.reshape(rows, -1)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows,row", [(7, 256), (1, 1024), (65, 768)])
def test_random_blocks(tmp_path, kind, rows, row):
    raw = blocks(np.random.default_rng(rows), kind, rows, row)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lines, values = probe(tmp_path / "a.gguf", tmp_path / "out")
    assert lines[0] == f"w {kind} {rows} {row}"
    expected = gguf.dequantize(gguf.GGUFReader(tmp_path / "a.gguf").tensors[0].data, gguf.GGMLQuantizationType[kind])
    assert expected.shape == (rows, row) and np.isfinite(expected).all() and np.abs(expected).max() > 0
    assert np.array_equal(values.view(np.uint32), expected.astype(np.float32).reshape(-1).view(np.uint32))


def test_sizes_of_all_types():
    """Types that cannot be unpacked are measured all the same, or the table after them could not be checked."""
    source = (ROOT / "csrc/formats/gguf_types.cpp").read_text()
    constants = {"kF32": 0, "kF16": 1, "kQ4_0": 2, "kQ4_1": 3, "kQ8_0": 8, "kQ4_K": 12, "kQ6_K": 14, "kBF16": 30}
    table = source[source.index("kTypes[] = {"):source.index("};", source.index("kTypes[] = {"))]
    rows = {}
    for row in table.split("{")[2:]:
        number, name, per_block, size = [part.strip(' "') for part in row.split("}")[0].split(",")[:4]]
        rows[constants.get(number) if number in constants else int(number)] = (name, int(per_block), int(size))
    assert rows == {int(t): (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}


def test_metadata(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gemma")
    expected = {"general.architecture": "gemma"}
    for kind, value in (("uint8", 255), ("int8", -128), ("uint16", 65535), ("int16", -32768), ("uint32", 2**32 - 1),
                        ("int32", -2**31), ("uint64", 2**53), ("int64", -2**53), ("float32", 0.1), ("float64", 0.1),
                        ("bool", True)):
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
        expected[f"x.{kind}"] = str(value) if kind != "float32" else f"{float(np.float32(value)):.17g}"
    expected["x.float64"] = f"{0.1:.17g}"
    writer.add_string("x.text", "ünïcode 名")
    writer.add_array("x.names", ["a", "bc", ""])
    writer.add_array("x.numbers", [1, -2, 3])
    expected.update({"x.text": "ünïcode 名", "x.names": "[8 of 3]", "x.numbers": "[5 of 3]"})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lines, _ = probe(tmp_path / "a.gguf", tmp_path / "out")
    assert dict(line.split(" = ", 1) for line in lines) == {key: str(value) for key, value in expected.items()}


def test_a_real_model(tmp_path):
    file = smollm2()
    lines, values = probe(file, tmp_path / "out")
    reader = gguf.GGUFReader(file)
    assert len(reader.tensors) == 272
    at = 0
    for line, tensor in zip(lines, reader.tensors):
        shape = [int(size) for size in reversed(tensor.shape)]
        assert line.split() == [tensor.name, tensor.tensor_type.name, *map(str, shape)]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        assert np.array_equal(values[at:at + expected.size].view(np.uint32), expected.view(np.uint32)), tensor.name
        at += expected.size
    assert at == values.size == 134515008
    metadata = dict(line.split(" = ", 1) for line in lines[272:] if " = " in line)
    assert metadata["llama.attention.head_count_kv"] == "3" and metadata["tokenizer.ggml.tokens"] == "[8 of 49152]"
