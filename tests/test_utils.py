"""Devices."""

import ctypes

import torch

from utils import pick_device


def test_where_the_c_library_is_another_the_cpu_is_used_all_the_same(monkeypatch):
    def refuse(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert pick_device("cpu") == torch.device("cpu")
