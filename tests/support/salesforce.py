"""
A stand-in for Salesforce: SOAP login and Bulk API 2.0, as far as an upsert needs them.

Written from Salesforce's documentation. It is a proxy that answers for every host, over TLS with its own certificate,
so that the client uses the real host names.
"""

from __future__ import annotations

import csv
import io
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SESSION = "session-of-the-stand-in"
LOGIN = f"""<?xml version="1.0"?><Envelope><Body><loginResponse><result>
<serverUrl>https://acme.my.salesforce.com/services/Soap/u/59.0/00D</serverUrl><sessionId>{SESSION}</sessionId>
</result></loginResponse></Body></Envelope>"""


class Salesforce:
    """
    The records, logins and jobs of the stand-in.

    :param rejects: values of ``Class__c`` that it rejects.
    """

    def __init__(self, rejects: tuple[str, ...] = ()) -> None:
        self.rejects = rejects
        self.records: dict[str, dict[str, str]] = {}
        self.logins: list[str] = []
        self.jobs: list[dict[str, Any]] = []

    def process(self, job: dict[str, Any]) -> None:
        """Insert or update each record by its external id, or reject it."""
        job |= {"state": "JobComplete", "rejected": []}
        for record in job["records"]:
            if record["Class__c"] in self.rejects:
                job["rejected"].append(record)
            else:
                self.records[record[job["externalIdFieldName"]]] = record


@contextmanager
def serve_salesforce(salesforce: Salesforce, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the URL of the proxy and the path of the certificate to trust."""
    certificate = _make_certificate(folder, "login.salesforce.com", "acme.my.salesforce.com")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.close_connection = False  # CONNECT arrives as HTTP/1.0, which closes by default
            self.connection = tls.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)

        def do_POST(self) -> None:
            body = self._body()
            if "/services/Soap/u/" in self.path:
                salesforce.logins.append(body)
                return self._answer(200, LOGIN, "text/xml")
            assert self._is_known()
            job = {
                "id": f"job{len(salesforce.jobs)}",
                "state": "Open",
                "records": [],
                "rejected": [],
                **json.loads(body),
            }
            salesforce.jobs.append(job)
            return self._answer(200, job)

        def do_PUT(self) -> None:
            job, rest = self._job()
            assert rest == "batches"
            job["records"] += csv.DictReader(io.StringIO(self._body(), newline=""))
            self._answer(201, "")

        def do_PATCH(self) -> None:
            job, _ = self._job()
            assert json.loads(self._body()) == {"state": "UploadComplete"}
            salesforce.process(job)
            self._answer(200, job)

        def do_GET(self) -> None:
            job, rest = self._job()
            if rest == "failedResults":
                rows = [f'"","REQUIRED_FIELD_MISSING","{record["Key__c"]}"' for record in job["rejected"]]
                return self._answer(200, "\n".join(['"sf__Id","sf__Error","Key__c"', *rows]), "text/csv")
            done, rejected = len(job["records"]), len(job["rejected"])
            return self._answer(200, {**job, "numberRecordsProcessed": done, "numberRecordsFailed": rejected})

        def _is_known(self) -> bool:
            return self.headers["Authorization"] == f"Bearer {SESSION}"

        def _job(self) -> tuple[dict[str, Any], str]:
            assert self._is_known()
            name, _, rest = self.path.partition("/jobs/ingest/")[2].partition("/")
            return next(job for job in salesforce.jobs if job["id"] == name), rest

        def _body(self) -> str:
            return self.rfile.read(int(self.headers["Content-Length"])).decode()

        def _answer(self, status: int, body: object, kind: str = "application/json") -> None:
            encoded = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", certificate
        server.shutdown()
        thread.join()


def _make_certificate(folder: Path, *hosts: str) -> Path:
    """Write a key and a self-signed certificate for the hosts to one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / "salesforce.pem"
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem))
    return path
