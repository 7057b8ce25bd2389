"""A cascade: a small model reads a digit, and a large one is asked only when it is unsure.

Run it, and send it one of the images that the models were not trained on:

    pip install scikit-learn
    raycompose run cascade:app --app-dir examples
    python examples/cascade.py 33 | curl localhost:8000 -d @-
"""

import json
import sys
from typing import TypedDict

from ray import serve
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import train_test_split

import raycompose as rc

Image = list[float]


class Reading(TypedDict):
    digit: int
    confidence: float
    model: str


class Seen(TypedDict):
    image: Image
    reading: Reading


train_images, test_images, train_digits, test_digits = train_test_split(
    *load_digits(return_X_y=True), random_state=0
)


def image(pixels: Image) -> Image:
    if len(pixels) != 64:
        raise rc.HTTPError(422, f"an image has 8 x 8 = 64 pixels, got {len(pixels)}")
    return pixels


@serve.deployment
class Reader:
    def __init__(self, name: str, model: ClassifierMixin) -> None:
        self._name = name
        self._model = model.fit(train_images, train_digits)

    def __call__(self, image: Image) -> Reading:
        chances = self._model.predict_proba([image])[0]
        digit = int(chances.argmax())
        return {"digit": digit, "confidence": float(chances[digit]), "model": self._name}


def unsure(seen: Seen) -> bool:
    return seen["reading"]["confidence"] < 0.99


def image_of(seen: Seen) -> Image:
    return seen["image"]


def reading_of(seen: Seen) -> Reading:
    return seen["reading"]


small = Reader.options(name="Small").bind("small", LinearDiscriminantAnalysis())
large = Reader.options(name="Large").bind("large", ExtraTreesClassifier(random_state=0))

app = rc.pipeline(
    image,
    rc.parallel(image=rc.passthrough, reading=small),
    rc.when(unsure, rc.pipeline(image_of, large), reading_of),
)

if __name__ == "__main__":
    print(json.dumps(test_images[int(sys.argv[1])].tolist()))
