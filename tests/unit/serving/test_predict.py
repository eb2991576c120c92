"""``/v1/predict`` and ``/v1/embeddings``: arrays, images and texts over HTTP."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from compressor.errors import DataError
from compressor.models.capabilities.signature import InputSpec
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.serving.api_errors import ApiError
from compressor.serving.arrays import ArrayReader
from compressor.serving.base64_text import decode_base64
from compressor.serving.launch import RunningServer
from tests.support.processors import write_processor
from tests.support.served import data_url, screen_png, serving
from tests.support.stand_ins import SHORT, write_model


@pytest.fixture
def predictor(onnx_folder: Callable[[str | None], Path]) -> Iterator[RunningServer]:
    """Serve ``logits = x @ w`` with w = [[0, 1], [2, 3], [4, 5]]."""
    with serving(onnx_folder(None), threads=2) as server:
        yield server


def predict(server: RunningServer, inputs: object, **fields: object) -> httpx.Response:
    return httpx.post(server.url + "/v1/predict", json={"inputs": inputs, **fields}, timeout=60)


def npy(array: np.ndarray) -> dict[str, str]:
    stream = io.BytesIO()
    np.save(stream, array)
    return {"npy": base64.b64encode(stream.getvalue()).decode()}


def test_lists_of_numbers_give_named_outputs(predictor: RunningServer) -> None:
    answer = predict(predictor, {"x": [[1, 0, 0], [0, 0, 1]]})
    assert answer.json() == {"model": "tiny", "outputs": {"logits": [[0, 1], [4, 5]]}}


def test_arrays_may_go_both_ways_as_npy(predictor: RunningServer) -> None:
    values = np.array([[1, 1, 0]], np.float32)
    answer = predict(predictor, {"x": npy(values)}, encoding="npy").json()
    content = base64.b64decode(answer["outputs"]["logits"]["npy"])
    assert np.load(io.BytesIO(content)).tolist() == [[2, 4]]


def test_a_body_may_be_a_safetensors_file(predictor: RunningServer) -> None:
    def post(content: bytes) -> httpx.Response:
        headers = {"content-type": "application/vnd.safetensors"}
        return httpx.post(predictor.url + "/v1/predict", content=content, headers=headers)

    values = np.array([[1, 1, 0], [0, 0, 2]], np.float32)
    assert post(save({"x": values})).json()["outputs"]["logits"] == [[2, 4], [8, 10]]
    for broken in (b"", b"\xff" * 8, save({"x": values})[:-4], save({"z": values})):
        assert post(broken).status_code == 400


@given(content=st.binary(max_size=70))
def test_base64_is_decoded_as_python_does(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    assert decode_base64(text) == content
    for broken in (text + "=", "@" + text[1:] if text else "@", text + "===="):
        with pytest.raises(ValueError):
            decode_base64(broken)


def test_more_samples_than_a_batch_holds_are_all_predicted(predictor: RunningServer) -> None:
    values = np.arange(300, dtype=np.float32).reshape(100, 3)
    answer = predict(predictor, {"x": npy(values)}).json()
    weight = np.arange(6).reshape(3, 2)
    assert np.array_equal(answer["outputs"]["logits"], values @ weight)


UNCLOSED_HEADER = b"\x93NUMPY\x01\x00\x0b\x00{'descr': ("


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "x: missing"),
        ({"x": [[1, 2]]}, "shape [1, 2], expected [batch, 3]"),
        ({"x": [[1, 2, 3], [1]]}, "different lengths"),
        ({"x": [["a", "b", "c"]]}, "expected numbers"),
        ({"x": []}, "x"),
        ({"x": [[1e308, 0, 0]]}, "do not fit into float32"),
        ({"x": "abc"}, "expected lists of numbers"),
        ({"x": {"npy": "!"}}, "no valid .npy file"),
        ({"x": {"npy": base64.b64encode(b"\x93NUMPY\x01\x00").decode()}}, "no valid .npy file"),
        ({"x": {"npy": base64.b64encode(UNCLOSED_HEADER).decode()}}, "no valid .npy file"),
        ({"x": {}}, "expected either npy or image_url"),
        ({"x": {"image_url": data_url(screen_png(0, 32, 32))}}, "the input is no image"),
        ({"z": [[1]]}, "the model has no such input"),
        (5, "inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    predictor: RunningServer, inputs: object, text: str
) -> None:
    answer = predict(predictor, inputs)
    assert answer.status_code == 400
    assert text in answer.json()["error"]["message"]


def test_an_object_array_is_never_unpickled(predictor: RunningServer) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    encoded = base64.b64encode(stream.getvalue()).decode()
    answer = predict(predictor, {"x": {"npy": encoded}})
    assert answer.status_code == 400


def test_infinity_is_never_sent_as_json(predictor: RunningServer) -> None:
    values = npy(np.array([[np.inf, 0, 0]], np.float32))
    assert predict(predictor, {"x": values}).json()["error"]["code"] == "non_finite_output"
    assert predict(predictor, {"x": values}, encoding="npy").status_code == 200


def test_an_unknown_output_is_named(predictor: RunningServer) -> None:
    answer = predict(predictor, {"x": [[1, 2, 3]]}, outputs=["other"])
    assert "it has logits" in answer.json()["error"]["message"]


def test_many_clients_get_their_own_predictions(predictor: RunningServer) -> None:
    with httpx.Client(base_url=predictor.url, timeout=60) as client, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> float:
            body = {"inputs": {"x": [[number, 0, 0]]}}
            return client.post("/v1/predict", json=body).json()["outputs"]["logits"][0][1]

        assert list(pool.map(ask, range(200))) == list(range(200))
    assert predictor.metrics.value("predictions") == 200


def test_a_model_without_text_names_its_route(predictor: RunningServer) -> None:
    answer = httpx.post(predictor.url + "/v1/chat/completions", json={})
    assert answer.status_code == 404
    assert "/v1/predict" in answer.json()["error"]["message"]


def test_an_image_is_resized_for_a_model_that_takes_bytes(tmp_path: Path) -> None:
    write_model(ImageClassifier(), "tiny", tmp_path / "model")
    with serving(tmp_path / "model") as server:
        [name] = server.served.facts()["inputs"]
        answer = predict(server, {name: {"image_url": data_url(screen_png())}})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["outputs"]["logits"]) == 1


def test_floats_of_an_image_are_scaled_as_the_request_states(tmp_path: Path) -> None:
    spec = InputSpec("image", "float32", ("batch", 3, 8, 8))
    reader = ArrayReader((spec,), tmp_path, max_pixels=1 << 20)
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 51)).save(stream, "PNG")
    image = {"image_url": data_url(stream.getvalue())}
    with pytest.raises(ApiError, match="add the mean and std"):
        reader.read("image", image)
    scaled = reader.read("image", {**image, "mean": [0.5, 0.5, 0.1], "std": [0.5, 0.25, 0.1]})
    assert scaled.shape == (1, 3, 8, 8)
    assert scaled[0, :, 0, 0] == pytest.approx([1, -2, 1])


def test_an_image_that_the_models_processor_refuses_is_the_clients_error(tmp_path: Path) -> None:
    write_processor(tmp_path)  # it takes no image more than 200 times as high as wide
    tokens = InputSpec("input_ids", "int64", ("batch", "tokens"))
    pixels = InputSpec("pixels", "float32", ("batch", 3, 8, 8))
    reader = ArrayReader((tokens, pixels), tmp_path, max_pixels=1 << 20)
    stream = io.BytesIO()
    Image.new("RGB", (1, 900)).save(stream, "PNG")
    image = {"image_url": data_url(stream.getvalue())}
    with pytest.raises(ApiError, match="the input is no image"):
        reader.read("input_ids", image)
    with pytest.raises(DataError, match="processor refuses the image"):
        reader.read("pixels", image)


@pytest.fixture
def embedder(tmp_path: Path) -> Iterator[RunningServer]:
    write_model(SentenceEncoder(), "tiny", tmp_path / "model", **SHORT)
    write_processor(tmp_path / "model")
    with serving(tmp_path / "model") as server:
        yield server


def test_embeddings_are_vectors_of_length_1_whatever_is_embedded_beside_them(
    embedder: RunningServer,
) -> None:
    with openai.OpenAI(base_url=embedder.url + "/v1", api_key="x", max_retries=0) as client:
        both = client.embeddings.create(model="tiny", input=["w7 w8", "w9 w10 w11"])
        one = client.embeddings.create(model="tiny", input="w7 w8", encoding_format="float")
        tokens = client.embeddings.create(model="tiny", input=[7, 8])
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="tiny", input="w7", dimensions=3)
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="tiny", input="w7 " * 500)
    assert caught.value.code == "context_length_exceeded"
    assert [item.index for item in both.data] == [0, 1]
    assert np.linalg.norm(both.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert both.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-6)
    assert tokens.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-6)
    assert both.usage.prompt_tokens == 5


def test_a_request_does_not_wait_for_itself(embedder: RunningServer) -> None:
    queue = embedder.served._predictor.queue
    with openai.OpenAI(base_url=embedder.url + "/v1", api_key="x", max_retries=0) as client:
        client.embeddings.create(model="tiny", input="w7")
        queue._seconds_per_sample = 1.0  # 300 texts would take far longer than a request may wait
        texts = [f"w{number}" for number in range(4, 304)]
        assert len(client.embeddings.create(model="tiny", input=texts).data) == 300


def test_a_server_that_drains_answers_predictions_that_are_still_decoded(
    onnx_folder: Callable[[str | None], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, original = threading.Event(), ArrayReader.read

    def slow(*arguments: Any) -> Any:
        begun.set()
        time.sleep(2.5)  # longer than the server waits for last bytes
        return original(*arguments)

    monkeypatch.setattr(ArrayReader, "read", slow)
    answers: list[httpx.Response] = []
    with serving(onnx_folder(None)) as server, ThreadPoolExecutor(1) as pool:
        values = np.zeros((60_000, 3), np.float32)  # large enough for a thread
        work = pool.submit(predict, server, {"x": npy(values)}, encoding="npy")
        assert begun.wait(20)
        assert server.drain(30)
        answers.append(work.result(1))
        assert predict(server, {"x": [[1, 2, 3]]}).json()["error"]["code"] == "draining"
    assert answers[0].status_code == 200, answers[0].text
