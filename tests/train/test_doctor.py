"""The doctor names what is there and what helps where something is not."""

import shutil
import subprocess

import jax

from jaxwm.train import doctor


def facts(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return {fact.name: fact for fact in doctor.examine()}


def test_it_names_versions_devices_cache_and_disk(monkeypatch, tmp_path):
    (tmp_path / "entry").write_bytes(b"x" * 2_000_000)
    found = facts(monkeypatch, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert found["jax"].value == jax.__version__
    assert found["devices"].value.startswith(f"{jax.device_count()} x")
    assert found["compilation cache"].value == f"{tmp_path}: 1 files, 2 MB"
    assert "GB" in found["free disk"].value
    assert int(found["cpu cores"].value) >= 1


def test_missing_things_come_with_a_remedy(monkeypatch):
    def broken(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "no\nFatalError: no display")

    monkeypatch.setattr(subprocess, "run", broken)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    found = facts(monkeypatch, MUJOCO_GL="glfw")
    assert found["drawing"].value == "MUJOCO_GL=glfw: FatalError: no display"
    assert "MUJOCO_GL=egl" in found["drawing"].remedy
    assert found["ffmpeg"].remedy
    assert found["compilation cache"].value == "off"


def test_a_driver_that_hangs_is_named(monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert "no answer in 60 s" in facts(monkeypatch)["drawing"].value


def test_devices_that_cannot_start_are_named(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu'\nlong story")

    monkeypatch.setattr(jax, "devices", fail)
    fact = doctor._devices()
    assert fact.value == "Unable to initialize backend 'tpu'"
    assert "--platform" in fact.remedy
