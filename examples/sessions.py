"""Sessions: each user's requests go to the replica that remembers them.

Ray Serve's router sends the calls of one session to one replica; `affinity="user"` makes the user
the session.

Run it:

    raycompose run sessions:app --app-dir examples
    curl localhost:8000 -d '{"user": "dora", "says": "hello"}'
    curl localhost:8000 -d '{"user": "dora", "says": "still me"}'
"""

from ray import serve
from ray.serve.config import RequestRouterConfig

import raycompose as rc


@serve.deployment(
    num_replicas=2,
    request_router_config=RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
        # A user waits for the replica that knows them, even when another is free.
        request_router_kwargs={"num_fallback_replicas": 0},
    ),
)
class Chat:
    """Keeps what each of its users said."""

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}

    def __call__(self, user: str, says: str) -> list[str]:
        said = self.said.setdefault(user, [])
        said.append(says)
        return said


app = rc.stage(Chat.bind(), affinity="user")
