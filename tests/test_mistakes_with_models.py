"""Mistakes of the first hour with configurations and whole models: one sentence says what to give instead."""

import pathlib
import re

import numpy as np
import pytest
import torch

import rope_ext

pytestmark = pytest.mark.devices("cpu")
LONG = np.arange(3000.0)

# ---- configurations ----

NEEDS = "config must have rope_theta or rope_parameters, and head_dim or hidden_size with num_attention_heads, got"
NO_CONFIG = "config must be a configuration object or a dict, got"


class Model(torch.nn.Module):
    config = None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, f"{NEEDS} {{}}"),
        (object(), f"{NEEDS} <object object at "),
        ({"head_dim": 64}, "config must have rope_parameters, rope_scaling or rope_theta, got one with head_dim"),
        ("config.json", f"{NO_CONFIG} 'config.json': json.load reads a config.json"),
        (pathlib.Path("config.json"), f"{NO_CONFIG} PosixPath('config.json'): json.load reads a config.json"),
        (Model(), f"{NO_CONFIG} Model(): model.config is one"),
        (LONG, f"{NO_CONFIG} ndarray of shape (3000,), float64"),
        (torch.ones(3), f"{NO_CONFIG} Tensor of shape (3,), float32"),
        ({"rope_theta": LONG}, "rope_theta must be a number, got ndarray of shape (3000,), float64"),
        (
            {"rope_theta": 1e4, "rope_scaling": LONG},
            "rope_scaling must be a dict, got ndarray of shape (3000,), float64",
        ),
        (
            {"rope_theta": 1e4, "use_scaled_rope": LONG},
            "use_scaled_rope must be False or absent for from_config, got ndarray",
        ),
        (
            {"rope_theta": 1e4, "yarn_beta": [1] * 3000},
            "yarn_beta must be a key that from_config knows, got [1, 1, 1, 1,",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_incomplete_config_is_refused(config, message):
    with pytest.raises((TypeError, ValueError), match=f"^rope_ext: {re.escape(message)}") as caught:
        rope_ext.RotaryEmbedding.from_config(config)
    assert "\n" not in str(caught.value)


# ---- whole models ----


class Pipeline:
    def __init__(self):
        self.unet, self.text_encoder, self.name = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), "pipeline"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Pipeline(), "Pipeline: pass its unet or its text_encoder"),
        (torch.nn.Linear, "the class Linear"),
        (None, "NoneType"),
    ],
)
def test_an_invalid_model_is_refused(model, message):
    for function in (rope_ext.patch, rope_ext.unpatch, lambda model: rope_ext.patched(model).__enter__()):
        with pytest.raises(
            TypeError,
            match=f"^rope_ext: model must be a torch.nn.Module, a Python module or a model type, got {re.escape(message)}$",
        ):
            function(model)


def test_an_invalid_rounding_is_refused():
    message = re.escape("rounding must be 'once' or 'eager', got ndarray of shape (3000,), float64")
    with pytest.raises(ValueError, match=f"^rope_ext: {message}$"):
        rope_ext.patch(torch.nn.Linear(2, 2), rounding=LONG)
