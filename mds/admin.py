"""The MDS's HTTP side for administrators, beside `/metrics` and `/health`."""

from aiohttp import web

from nacrefs.mds.report import status_report
from nacrefs.mds.service import Mds


def add_routes(app: web.Application, mds: Mds) -> None:
    """Serve `/status`: sessions, OSTs, leases and queues, as JSON."""

    async def status(request: web.Request) -> web.Response:
        return web.json_response(status_report(mds))

    app.router.add_get("/status", status)
