"""Flows as somebody else wrote them: they know nothing of batches, jobs or this package."""

from __future__ import annotations

from prefect import flow, get_run_logger


@flow
def archive(ids: list[int], folder: str = "archive") -> None:
    """Move many videos at once."""
    for video in ids:
        get_run_logger().info("%s -> %s", video, folder)


@flow
def transcode(video: str, width: int = 640) -> None:
    """Make one video smaller."""
    if video.endswith(".txt"):
        raise ValueError(f"{video} is no video")
    get_run_logger().info("%s: %s pixels", video, width)


@flow
def monthly(region: str, month: int) -> None:
    """Report one region's month."""
    get_run_logger().info("%s %s", region, month)
