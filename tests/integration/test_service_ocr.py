from __future__ import annotations

from tests.support.service import png, running_service


async def test_page_is_read() -> None:
    async with running_service() as service:
        response = await service.ocr(png())
    assert response.status_code == 200, response.text
    print(response.json())
