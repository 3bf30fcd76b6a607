"""A server of a directory as a bucket of S3, with a latency: only what reading needs, so that it costs little CPU.

    python benchmarks/shared/s3_server.py DIRECTORY LATENCY_SECONDS

It prints its port, and after each line on standard input the largest number of requests in flight since the last one.
"""

import asyncio
import hashlib
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web


def application(directory: Path, latency: float) -> tuple[web.Application, list[int]]:
    """Return the application, and the number of requests in flight with its largest value."""
    in_flight = [0, 0]

    def tag(path: Path) -> str:
        status = path.stat()
        return hashlib.md5(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()

    def listing(prefix: str, delimiter: str) -> web.Response:
        root = directory / prefix
        entries = []
        for path in sorted(root.rglob("*") if not delimiter else root.iterdir()) if root.is_dir() else []:
            key = escape(path.relative_to(directory).as_posix())
            if path.is_dir() and delimiter:
                entries.append(f"<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>")
            elif path.is_file():
                facts = f"<Key>{key}</Key><Size>{path.stat().st_size}</Size><ETag>{tag(path)}</ETag>"
                entries.append(f"<Contents>{facts}<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>")
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
        return web.Response(text=body, content_type="application/xml")

    async def answer(request: web.Request) -> web.StreamResponse:
        in_flight[0] += 1
        in_flight[1] = max(in_flight)
        try:
            await asyncio.sleep(latency)
            key = request.match_info.get("key", "")
            if "list-type" in request.query:
                return listing(request.query.get("prefix", "").rstrip("/"), request.query.get("delimiter", ""))
            path = directory / key
            if not path.is_file():
                return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
            return web.FileResponse(path, headers={"ETag": f'"{tag(path)}"'})
        finally:
            in_flight[0] -= 1

    app = web.Application()
    app.router.add_get("/{bucket}/{key:.*}", answer)
    app.router.add_get("/{bucket}", answer)
    return app, in_flight


async def serve(directory: Path, latency: float) -> None:
    app, in_flight = application(directory, latency)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(in_flight[1], flush=True)
        in_flight[1] = in_flight[0]


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2])))
