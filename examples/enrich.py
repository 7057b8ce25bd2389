"""A product page: what it must have, what it may have, and what there is time for.

The price is needed; reviews are left out when their service fails or is slow; the description is
the long one only while the request has time for it.

Run it:

    raycompose run enrich:app --app-dir examples
    curl localhost:8000 -d '{"id": 7}'
    curl localhost:8000 -d '{"id": 7}' -H 'x-request-timeout-seconds: 1'
"""

import time
from typing import TypedDict

from ray import serve

import raycompose as rc


class Product(TypedDict):
    id: int


@serve.deployment
class Prices:
    def __call__(self, product: Product) -> float:
        return 9.5 + product["id"]


@serve.deployment
class Reviews:
    def __call__(self, product: Product) -> list[str]:
        if product["id"] % 2:
            time.sleep(3)  # an old database
        return ["It works."]


def description(product: Product) -> str:
    left_s = rc.remaining_s()
    if left_s is not None and left_s < 2:
        return "A product."
    return f"The product that everybody calls number {product['id']}."


app = rc.assign(
    price=Prices.bind(),
    reviews=rc.optional(Reviews.bind(), default=[], timeout_s=0.3),
    description=description,
).options(timeout_s=10)
