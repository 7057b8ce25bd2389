"""The two streaming examples run: the chat endpoint under the real client, and the speech."""

import io
import json
import struct
import wave
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import openai
import pytest
import requests
from starlette.testclient import TestClient
from support.cluster import Deploy
from test_examples import TIMEOUT_S, get, load

import raycompose as rc

chat: ModuleType = load("chat")
speech: ModuleType = load("speech")


@pytest.fixture(scope="module")
def chat_url(deploy: Deploy) -> str:
    """Where the chat endpoint answers."""
    url = deploy(chat.app).url
    assert url is not None
    return url


@pytest.fixture(scope="module")
def ai(chat_url: str) -> Iterator[openai.OpenAI]:
    """The client that people use, against the example."""
    url = f"{chat_url}v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        yield client


def user(content: str) -> Any:
    return [{"role": "user", "content": content}]


# chat.py


def test_chat_answers_whole(ai: openai.OpenAI) -> None:
    """Without streaming the answer is one completion with its usage."""
    answer = ai.chat.completions.create(
        model="alice", messages=user("Down"), seed=1, max_completion_tokens=8
    )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "alice"
    assert answer.created > 1_600_000_000
    (choice,) = answer.choices
    assert choice.index == 0
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.content.startswith(", down")
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert usage == (1, 8, 9)


def test_chat_streams_the_same_text(ai: openai.OpenAI) -> None:
    """With streaming the pieces make the text of the whole answer, one piece for each token."""
    asked: Any = {"model": "alice", "messages": user("Down"), "seed": 1, "max_tokens": 20}
    whole = ai.chat.completions.create(**asked)
    with ai.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *spoken, last, usage = chunks
    assert spoken[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in spoken[1:]]
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(pieces)
    assert all(chunk.choices[0].finish_reason is None for chunk in spoken)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.choices == []
    assert usage.usage == whole.usage


def test_chat_stops_at_the_end_of_a_paragraph(ai: openai.OpenAI) -> None:
    """An answer that the model itself ends has ``finish_reason="stop"``."""
    answer = ai.chat.completions.create(
        model="alice", messages=user("I think."), max_tokens=10_000, seed=3
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 10_000


def test_chat_ends_its_events_as_openai_does(chat_url: str) -> None:
    """On the wire each chunk is a data event, and the last one says [DONE]."""
    asked = {"model": "alice", "messages": user("Down"), "stream": True, "max_tokens": 3}
    url = f"{chat_url}v1/chat/completions"
    response = requests.post(url, json=asked, timeout=TIMEOUT_S)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len(chunks) == 1 + 3 + 1
    assert set(chunks[1]) == {"id", "object", "created", "model", "choices"}
    assert set(chunks[1]["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}


def test_chat_refuses_what_it_cannot_answer(ai: openai.OpenAI, chat_url: str) -> None:
    """An unknown model and a request without messages are the client's errors, as it knows them."""
    with pytest.raises(openai.NotFoundError, match="only 'alice'"):
        ai.chat.completions.create(model="gpt", messages=user("Down"))
    with pytest.raises(openai.UnprocessableEntityError):
        ai.chat.completions.create(model="alice", messages=[])
    assert "/v1/chat/completions" in json.loads(get(f"{chat_url}openapi.json"))["paths"]


def test_chat_pipeline_locally() -> None:
    """Without a cluster the pipeline gives the same tokens: some text, without quotation marks."""
    client = rc.local(chat.pipeline)
    request = chat.ChatRequest(model="alice", messages=user("thought Alice to"), seed=5)
    tokens = list(client.stream(request))
    assert tokens == list(client.stream(request))
    assert tokens[0] == " herself"
    assert '"' not in "".join(tokens)


# speech.py


def samples_of(body: bytes) -> list[int]:
    """Return a WAV file's samples; its length is unknown, as in every WAV that is streamed."""
    with wave.open(io.BytesIO(body)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert file.getframerate() == speech.RATE_HZ
    sound = body[44:]
    return list(struct.unpack(f"<{len(sound) // 2}h", sound))


def test_speech_is_a_wav_file(deploy: Deploy) -> None:
    """Over HTTP the text sounds for as long as it has letters; by handle it comes in pieces."""
    client = deploy(speech.app)
    assert client.url is not None
    response = requests.post(client.url, data='"One, two. Three!"', timeout=TIMEOUT_S)
    assert response.headers["content-type"] == "application/octet-stream"
    samples = samples_of(response.content)
    letters = len("one ") + len("two ") + len("three ")
    assert len(samples) == letters * int(speech.LETTER_S * speech.RATE_HZ)
    assert max(samples) > 5000

    pieces = list(client.handle.options(stream=True).remote("One, two. Three!"))
    assert len(pieces) == 1 + 3
    assert b"".join(pieces) == response.content


def test_speech_locally() -> None:
    """Without a cluster the same bytes come out, and a space is silent."""
    client = rc.local(speech.app)
    with TestClient(client.asgi) as http:
        body = http.post("/", json="a").content
    assert body == b"".join(client.stream("a"))
    samples = samples_of(body)
    middle = len(samples) // 2
    assert max(samples[:middle]) > 5000
    assert set(samples[middle:]) == {0}
