#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An aiohttp server that retires its listener on SIGTERM: server.py PORT

Start a second one on the same port, then end the first: no client notices.
Exit code: 0 nothing was lost, 3 it may have been (no option here), 1 the server failed.
"""

import asyncio
import os
import signal
import socket
import sys

from aiohttp import web

import reuseport


async def answer(_request):
    return web.Response(text=f"pid {os.getpid()}\n")


async def main(port):
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", port), backlog=128, reuse_port=True)
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(runner.server, sock=listener)

    while True:
        asked = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, asked.set)
        await asked.wait()
        with reuseport.Drain() as drain:
            # The loop has the listener, so the server closes it.
            drain.add(listener, close=server.close)
            try:
                report = await drain.run_async()
            except reuseport.Error as error:
                print(f"{error}: serving on", file=sys.stderr)
                continue
            print(f"{report.outcome} by {report.method} ({report.support})", file=sys.stderr)
            if drain.listener(0).open:
                continue  # undone: the newcomer is gone
        # aiohttp's cleanup waits for requests in progress, but resets a connection whose request has not arrived yet.
        # Give the last accepted connections some time first.
        until = loop.time() + 30
        while runner.server.connections and loop.time() < until:
            await asyncio.sleep(0.02)
        left = len(runner.server.connections)
        if left:
            print(f"{left} connections are still open after 30 s", file=sys.stderr)
        await runner.cleanup()
        return 0 if report.lossless and not left else 3


if len(sys.argv) != 2:
    sys.exit("usage: server.py PORT")
sys.exit(asyncio.run(main(int(sys.argv[1]))))
