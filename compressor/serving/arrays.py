"""Arrays of requests: JSON lists, base64 of NumPy's file format, and images."""

from __future__ import annotations

import base64
import math
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from compressor.errors import DataError
from compressor.foreign_files.libraries import library_errors
from compressor.models.capabilities.signature import InputSpec
from compressor.serving.api_errors import bad_request
from compressor.serving.base64_text import decode_base64
from compressor.serving.fields import Fields, Number, Text, read_fields
from compressor.serving.image_urls import open_image_url

Array = np.ndarray[Any, Any]
_IMAGES_FILE = "preprocessor_config.json"
_IMAGE_RANK = 4
_GREY, _RGB = 1, 3
_KINDS = frozenset("biuf")
"""NumPy's kinds of dtypes that models take: bools, integers and floats."""


class ArrayFields(Fields):
    """An input that is no list: one of these."""

    npy: Text | None = None
    """Base64 of a .npy file."""
    image_url: Text | None = None
    """A data: address of one image."""
    mean: list[Number] | None = None
    std: list[Annotated[Number, Field(gt=0)]] | None = None
    """Mean and deviation of each channel, of values from 0 to 1."""


class ArrayReader:
    """Reads the inputs of one model from requests."""

    def __init__(self, inputs: tuple[InputSpec, ...], folder: Path, max_pixels: int) -> None:
        """Create a reader, which uses the image processor beside the model if there is one."""
        self._specs = {spec.name: spec for spec in inputs}
        self._max_pixels = max_pixels
        self._processor: Any = None
        if folder.is_dir() and (folder / _IMAGES_FILE).is_file():
            from compressor.models.families.transformers.image_processor import (
                open_image_processor,
            )

            self._processor = open_image_processor(folder)

    def read(self, name: str, value: Any) -> Array:
        """Return the array of an input.

        Raises:
            ApiError: 400; the value is no array.
            DataError: an image cannot be decoded.
        """
        spec, param = self._specs.get(name), f"inputs.{name}"
        if spec is None:
            raise bad_request(
                f"{param}: the model has no such input; it has {', '.join(self._specs)}", param
            )
        if isinstance(value, list | int | float):
            return _array_of_lists(value, spec, param)
        if not isinstance(value, dict):
            raise bad_request(f"{param}: expected lists of numbers, npy or image_url", param)
        fields = read_fields(ArrayFields, value)
        if (fields.npy is None) == (fields.image_url is None):
            raise bad_request(f"{param}: expected either npy or image_url", param)
        if fields.npy is not None:
            return _array_of_npy(fields.npy, param)
        return self._array_of_image(fields, spec, param)

    def _array_of_image(self, fields: ArrayFields, spec: InputSpec, param: str) -> Array:
        from PIL import Image

        assert fields.image_url is not None  # noqa: S101 - checked by ``read``
        shape = spec.shape
        if len(shape) != _IMAGE_RANK or shape[1] not in {_GREY, _RGB}:
            raise bad_request(f"{param}: the input is no image; its shape is {list(shape)}", param)
        image = open_image_url(fields.image_url, f"{param}.image_url", self._max_pixels)
        if self._processor is not None:
            with library_errors(f"{param}: the model's processor refuses the image", DataError):
                pixels = self._processor(image, return_tensors="np")
                return np.asarray(pixels[next(iter(pixels))])
        if isinstance(shape[2], int) and isinstance(shape[3], int):
            image = image.resize((shape[3], shape[2]), Image.Resampling.BILINEAR)
        values = np.asarray(image.convert("L" if shape[1] == _GREY else "RGB"))
        values = values[..., None] if values.ndim == 2 else values
        pixels_BCHW = np.ascontiguousarray(values.transpose(2, 0, 1)[None])
        if spec.dtype == "uint8":
            return pixels_BCHW
        return _normalized(pixels_BCHW, fields, spec, param)


def _normalized(pixels_BCHW: Array, fields: ArrayFields, spec: InputSpec, param: str) -> Array:
    """Return an image as floats, with the mean and deviation that the request states."""
    channels = pixels_BCHW.shape[1]
    if fields.mean is None or fields.std is None:
        raise bad_request(
            f"{param}: the model takes {spec.dtype}, and its files do not state how pixels are "
            "scaled: add the mean and std of its training, one value for each channel, of values "
            "from 0 to 1",
            param,
        )
    if len(fields.mean) != channels or len(fields.std) != channels:
        raise bad_request(f"{param}: mean and std need {channels} values each", param)
    mean = np.array(fields.mean, np.float32)[:, None, None]
    std = np.array(fields.std, np.float32)[:, None, None]
    return ((pixels_BCHW.astype(np.float32) / 255 - mean) / std).astype(spec.dtype)


def _array_of_lists(value: Any, spec: InputSpec, param: str) -> Array:
    try:
        array = np.array(value)
        if array.dtype.kind in _KINDS and np.dtype(spec.dtype).kind == "f":
            with np.errstate(over="raise"):
                array = array.astype(spec.dtype)  # JSON's numbers are no closer to it than this
    except FloatingPointError as error:
        raise bad_request(f"{param}: its values do not fit into {spec.dtype}", param) from error
    except (ValueError, OverflowError) as error:
        raise bad_request(f"{param}: the lists have different lengths: {error}", param) from error
    if array.dtype.kind not in _KINDS:
        raise bad_request(f"{param}: expected numbers", param)
    return array


def _array_of_npy(text: str, param: str) -> Array:
    """Return the array of a .npy file; its size is checked before anything is allocated."""
    try:
        content = decode_base64(text)
        stream = BytesIO(content)
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(stream)
        else:
            header = np.lib.format.read_array_header_2_0(stream)
        shape, is_fortran, dtype = header
        if dtype.kind not in _KINDS:
            raise DataError(f"{param}: arrays of {dtype} are not supported")
        values = np.frombuffer(content, dtype, offset=stream.tell())
        if math.prod(shape) != values.size or min(shape, default=0) < 0:
            raise ValueError(f"{values.size} values for the shape {list(shape)}")
        return values.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, EOFError, SyntaxError, TypeError, TokenError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise bad_request(f"{param}.npy: no valid .npy file in base64: {reason}", param) from error


def arrays_of_safetensors(body: bytes) -> dict[str, Array]:
    """Return the arrays of a .safetensors file.

    Raises:
        ApiError: 400; the file is damaged, or has a dtype that NumPy lacks.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(body))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise bad_request(f"the body is no .safetensors file that can be read: {error}") from error


def encode_npy(array: Array) -> str:
    """Return an array as base64 of a .npy file."""
    stream = BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(stream.getvalue()).decode("ascii")
