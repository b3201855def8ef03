"""nginx in front of the stand-in: the yardstick.

Read by :mod:`benchmarks.columns`. Guarantees a configuration that is good for nginx at this job: upstream
connections kept alive, no access log, no buffering of streams, TCP_NODELAY.

One worker, because the front door under test is one event loop: the question is what one process makes of a
request. On the two cores this is written for a second worker would only take time from the generator and
the upstream.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from llamaman.testing import processes

_CONFIG = """\
{user}worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    tcp_nodelay on;
    keepalive_requests 100000000;
    upstream engine {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


def find() -> str | None:
    """The nginx binary, null when it is not installed; it often lies outside a user's PATH."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def start(binary: str, folder: Path, port: int, upstream: int) -> subprocess.Popen[bytes]:
    """Start nginx on 127.0.0.1:``port`` with its files in ``folder``; end it with :func:`processes.stop`.

    :raises processes.NotReady: it does not listen in time.
    """
    folder.mkdir()
    user = "user root;\n" if os.geteuid() == 0 else ""  # else the worker could not enter our temporary folder
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, upstream=upstream, user=user))
    log = folder / "error.log"
    log.touch()
    process = subprocess.Popen(
        [binary, "-c", str(config), "-p", str(folder), "-e", str(log)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log.open("ab"),
    )
    processes.wait_until(lambda: processes.accepts(port), "nginx", process, log)
    return process
