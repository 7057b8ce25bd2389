"""Text to speech, of a kind: text becomes phrases, phrases sound, and sound becomes a WAV file.

Each of the three replicas pulls its items directly from the one before. A word sounds as one tone
for each of its letters. Run it, and listen:

    raycompose run speech:app --app-dir examples
    curl --no-buffer localhost:8000 -d '"One, two. Three!"' > speech.wav
"""

import math
import re
import struct
from collections.abc import AsyncIterator, Iterator

from ray import serve

import raycompose as rc

RATE_HZ = 8000
LETTER_S = 0.06


@serve.deployment
class Phrases:
    def __call__(self, text: str) -> Iterator[str]:
        for phrase in re.findall(r"[^.,;:!?]+", text):
            yield phrase.strip().lower()


@serve.deployment
class Voice:
    async def __call__(self, phrases: rc.Stream[str]) -> AsyncIterator[list[float]]:
        async for phrase in phrases:
            yield [sample for letter in f"{phrase} " for sample in self._tone(letter)]

    def _tone(self, letter: str) -> Iterator[float]:
        loudness = 0.3 if letter.isalnum() else 0.0
        pitch_hz = 220 * 2 ** (ord(letter) % 24 / 12)
        for n in range(int(LETTER_S * RATE_HZ)):
            yield loudness * math.sin(2 * math.pi * pitch_hz * n / RATE_HZ)


@serve.deployment
class Wav:
    def __call__(self, sounds: rc.Stream[list[float]]) -> Iterator[bytes]:
        yield self._header()
        for samples in sounds:
            yield struct.pack(f"<{len(samples)}h", *(int(32767 * s) for s in samples))

    def _header(self) -> bytes:
        unknown = 2**32 - 1  # a stream's length: players read on until it ends
        pcm = struct.pack("<IHHIIHH", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
        riff, data = struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE"), struct.pack("<I", unknown)
        return riff + b"fmt " + pcm + b"data" + data


phrases, voice, wav = Phrases.bind(), Voice.bind(), Wav.bind()
app: rc.Pipeline[str, bytes] = rc.pipeline(phrases, voice, wav)
