"""Three functions as one LangChain runnable: ``langchain_lcel.py CALLS`` prints µs a call."""

import asyncio
import sys
import time
from typing import Any

from langchain_core.runnables import RunnableLambda


async def same(value: Any) -> Any:
    return value


async def call_us(calls: int) -> float:
    chain = RunnableLambda(same) | RunnableLambda(same) | RunnableLambda(same)
    for _ in range(10):
        await chain.ainvoke({"text": "hello"})
    began = time.perf_counter()
    for _ in range(calls):
        await chain.ainvoke({"text": "hello"})
    return (time.perf_counter() - began) / calls * 1e6


if __name__ == "__main__":
    print(asyncio.run(call_us(int(sys.argv[1]))))
