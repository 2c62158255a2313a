"""Virtual time passes in no time, in order, and stands still while threads work."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.engine import virtual


def test_a_day_passes_in_no_time_and_in_order() -> None:
    async def main() -> list[tuple[float, str]]:
        loop, seen = asyncio.get_running_loop(), []

        async def after(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            seen.append((loop.time(), name))

        await asyncio.gather(after(100_000, "c"), after(0.1, "a"), after(3600, "b"))
        return seen

    began = time.monotonic()
    assert virtual.run(main()) == [
        (pytest.approx(0.1), "a"),
        (pytest.approx(3600), "b"),
        (pytest.approx(100_000), "c"),
    ]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("threads", [False, True])
def test_work_in_threads_takes_no_virtual_time(threads: bool) -> None:
    async def main() -> tuple[str, float]:
        timer = asyncio.create_task(asyncio.sleep(50))
        said = await asyncio.to_thread(lambda: time.sleep(0.2) or "done")
        now = asyncio.get_running_loop().time()
        await timer
        return said, now

    assert virtual.run(main(), threads=threads) == ("done", 0.0)


def test_an_error_in_a_thread_belongs_to_whoever_awaits() -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)

    virtual.run(main())


def test_a_program_that_can_never_go_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual, "_STUCK_SECONDS", 0.05)

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="never go on"):
        virtual.run(main())


def test_a_deadline_cuts_a_wait_at_its_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(60)
        return asyncio.get_running_loop().time()

    assert virtual.run(main()) == pytest.approx(30)
