"""Devices."""

import ctypes

import torch

from compute import choose_device


def test_where_the_c_library_is_another_the_cpu_is_used_all_the_same(monkeypatch):
    def refuse(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert choose_device("cpu") == torch.device("cpu")
