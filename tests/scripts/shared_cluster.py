"""Start a cluster with an application of somebody's on it, print its address, stay until killed."""

import os
import sys
import time

import ray
from ray import serve
from support.cluster import start_less


@serve.deployment  # type: ignore[untyped-decorator]  # Ray's
def theirs(request: object) -> str:
    return "theirs"


def main(port: int) -> None:
    start_less()
    os.environ["RAY_AUTH_MODE"] = "token"  # which the tests' own clusters want none of
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": port})
    serve.run(theirs.bind(), name="theirs", route_prefix="/theirs")
    print("address", ray.get_runtime_context().gcs_address, flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
