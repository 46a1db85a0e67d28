"""Fill the shelves of a page at once from an asyncio application, with a fallback if the scorer is away.

HEADWATER_SCORER_URL=http://127.0.0.1:8080 python examples/06_asyncio_storefront.py
"""

import asyncio
import os

from headwater import AsyncHeadwaterClient, ScorerUnavailableError

BESTSELLERS = ["22423", "85123A"]  # what the page shows when no ranking comes in time


async def shelf(client: AsyncHeadwaterClient, session_items: list[str]) -> list[str]:
    """Return the items of one shelf."""
    try:
        return (await client.recommend(5, session_items=session_items)).item_ids
    except ScorerUnavailableError as error:
        print(f"showing bestsellers: {error}")
        return BESTSELLERS


async def main() -> None:
    """Print three shelves."""
    url = os.environ.get("HEADWATER_SCORER_URL", "http://127.0.0.1:8080")
    async with AsyncHeadwaterClient(url, timeout_seconds=1) as client:
        for items in await asyncio.gather(*(shelf(client, session) for session in ([], ["22423"], ["85123A"]))):
            print(", ".join(items))


asyncio.run(main())
