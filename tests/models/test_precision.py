"""The dtype of activations."""

import jax
import pytest

from vise_jax.models.precision import compute_dtype


@pytest.mark.parametrize(
    ("dtype", "backend", "compute"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "gpu", "bfloat16"),
        ("auto", "tpu", "bfloat16"),
        ("float32", "gpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_auto_is_bfloat16_on_accelerators_only(monkeypatch, dtype, backend, compute):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert compute_dtype(dtype) == compute
