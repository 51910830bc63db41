"""The part of S3 that Snakemake's storage plugin uses, on this machine and in memory: objects of one bucket, unsigned."""

import threading
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import gmtime, strftime, time
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"


class Handler(BaseHTTPRequestHandler):
    """`self.server.objects` is key → (bytes, time)."""

    protocol_version = "HTTP/1.1"

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _key(self):
        """The key of the address; empty for the bucket itself."""
        bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        return key if bucket == BUCKET else None

    def _error(self, code):
        self._answer(404, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[self._key()] = (body, time())
        self._answer(200, ETag=f'"{md5(body).hexdigest()}"')

    def do_DELETE(self):
        self.server.objects.pop(self._key(), None)
        self._answer(204)

    def do_GET(self):
        key = self._key()
        if key is None:
            self._error("NoSuchBucket")
        elif not key:
            self._list(parse_qs(urlsplit(self.path).query).get("prefix", [""])[0])
        elif key not in self.server.objects:
            self._error("NoSuchKey")
        else:
            body, when = self.server.objects[key]
            if self.command == "GET":
                self.server.read.append(key)
            headers = {"ETag": f'"{md5(body).hexdigest()}"', "Last_Modified": formatdate(when, usegmt=True)}
            self._answer(200, body, **headers)

    do_HEAD = do_GET  # noqa: N815

    def _list(self, prefix):
        entries = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><Size>{len(body)}</Size><ETag>x</ETag>"
            f"<LastModified>{strftime('%Y-%m-%dT%H:%M:%S.000Z', gmtime(when))}</LastModified></Contents>"
            for key, (body, when) in sorted(self.server.objects.items())
            if key.startswith(prefix)
        )
        head = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
        self._answer(200, f"<ListBucketResult>{head}{entries}</ListBucketResult>".encode(), Content_Type="application/xml")

    def log_message(self, *words):
        pass


@contextmanager
def s3():
    """A server with an empty bucket; `.url`, `.objects` and `.read`, the keys that were fetched."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.objects, server.read = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
