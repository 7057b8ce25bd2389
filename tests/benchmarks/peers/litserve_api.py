"""Three functions in one LitServe API: ``litserve_api.py PORT``."""

# LitServe is not installed where the types are checked.
# mypy: disable-error-code="misc"

import sys
from typing import Any

import litserve


async def same(value: Any) -> Any:
    return value


class Stages(litserve.LitAPI):
    def setup(self, device: str) -> None:
        """There is nothing to set up."""

    async def decode_request(self, request):  # type: ignore[no-untyped-def]  # it would be validated
        return request

    async def predict(self, value: Any) -> Any:
        return await same(await same(await same(value)))

    async def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Stages(enable_async=True), accelerator="cpu")
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
