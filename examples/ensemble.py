"""An ensemble: three scikit-learn models see the same flower at once, and vote.

Run it:

    pip install scikit-learn
    raycompose run ensemble:app --app-dir examples
    curl localhost:8000 -d '[5.1, 3.5, 1.4, 0.2]'
"""

from collections import Counter
from typing import Any

from ray import serve
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

import raycompose as rc


def flower(measurements_cm: tuple[float, float, float, float]) -> list[float]:
    return list(measurements_cm)


@serve.deployment
class Classifier:
    def __init__(self, model: ClassifierMixin) -> None:
        iris = load_iris()
        self._names = iris.target_names
        self._model = model.fit(iris.data, iris.target)

    def __call__(self, measurements_cm: list[float]) -> str:
        return str(self._names[self._model.predict([measurements_cm])[0]])


def vote(votes: dict[str, str]) -> dict[str, Any]:
    [(species, _)] = Counter(votes.values()).most_common(1)
    return {"species": species, "votes": votes}


opinions = rc.parallel(
    bayes=Classifier.options(name="Bayes").bind(GaussianNB()),
    neighbors=Classifier.options(name="Neighbors").bind(KNeighborsClassifier()),
    tree=Classifier.options(name="Tree").bind(DecisionTreeClassifier(random_state=0)),
)
app = rc.pipeline(flower, opinions, vote)
