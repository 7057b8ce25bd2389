"""What stages return and raise, where the tests look at what becomes of it over HTTP."""

import dataclasses
import datetime

import pydantic

SECRET = "s3cret-password"


class Item(pydantic.BaseModel):
    name: str
    when: datetime.date = datetime.date(2020, 1, 2)


@dataclasses.dataclass
class Point:
    x: int
    at: Item | None = None
