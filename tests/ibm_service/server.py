"""The HTTP side: the paths that the client asks for, and ``/control`` for whoever runs the service."""

from __future__ import annotations

import json
import socket
import struct
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.ibm_service import devices
from tests.ibm_service.programs import Rejected
from tests.ibm_service.state import FINAL, INSTANCES, Misbehaviour, Service, crn

PREFIX = "/experimental"  # the client takes an address that holds this word as it is


class Gone(Exception):
    """The connection is cut."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    service: Service

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: headers hold tokens."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PATCH(self) -> None:
        self._serve("PATCH")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        try:
            submission = method == "POST" and parts.path == f"{PREFIX}/jobs"
            if submission and self.service.show("drop_before"):
                raise Gone
            length = int(self.headers.get("Content-Length") or 0)
            if submission and self.service.show("drop_during"):
                self.rfile.read(length // 2)
                raise Gone
            self.body = self.rfile.read(length)
            self._route(method, [p for p in parts.path.split("/") if p])
        except Gone:
            # reset, so that the other side sees a lost connection and not an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self._error(500, "the loopback service failed; see its standard error")

    def _route(self, method: str, path: list[str]) -> None:
        service = self.service
        if path[:1] == ["control"]:
            self._control(method, path[1:])
        elif path == ["identity", "token"]:
            key = parse_qs(self.body.decode()).get("apikey", [""])[0]
            token = service.sign_in(key)
            if token is None:
                self._answer(400, {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."})
            else:
                now = int(time.time())
                self._answer(
                    200,
                    {
                        "access_token": token,
                        "refresh_token": "none",
                        "token_type": "Bearer",
                        "expires_in": 3600,
                        "expiration": now + 3600,
                    },
                )
        elif path == ["v3", "resources", "search"]:
            items = [
                {
                    "crn": crn(plan),
                    "service_plan_unique_id": plan,
                    "name": plan,
                    "tags": [],
                    "doc": {"extensions": [{"backend": "any"}]},
                }
                for plan in INSTANCES
            ]
            self._answer(200, {"items": items, "limit": 100})
        elif path[:1] == ["catalog"] and path[-1] in INSTANCES:
            plan, pricing, _ = INSTANCES[path[-1]]
            self._answer(
                200, {"overview_ui": {"en": {"display_name": plan}}, "metadata": {"pricing": {"type": pricing}}}
            )
        elif path[:1] == [PREFIX[1:]]:
            self._api(method, path[1:])
        else:
            self._error(404, "no such path")

    def _api(self, method: str, path: list[str]) -> None:
        service = self.service
        where = "/".join(path)
        with service.lock:
            name = f"{method} {path[0]}" + ("/" + path[2] if len(path) > 2 else "")
            service.requests[name] = service.requests.get(name, 0) + 1
        if service.show("expire_tokens", f"{method} {where}"):
            service.tokens.clear()
        instance = self.headers.get("Service-CRN", "")
        status = service.signed_in(self.headers.get("Authorization", ""), instance)
        if status != 200:
            self._error(
                status, "Unauthorized." if status == 401 else "Forbidden: no access to this instance.", 1200 + status
            )
            return
        if method == "GET":
            stalled = service.show("stall_read", where)
            if stalled:
                time.sleep(stalled.seconds)
            if service.show("502_read", where):
                self._error(502, "Bad gateway")
                return
        if path == ["instances", "usage"]:
            plan, _, limit = INSTANCES[service.plan(instance)]
            self._answer(
                200,
                {
                    "instance_id": instance,
                    "plan_id": plan,
                    "usage_consumed_seconds": service.used,
                    "usage_limit_seconds": limit,
                    "usage_limit_reached": service.used >= limit,
                },
            )
        elif path[0] == "backends":
            self._backends(path[1:])
        elif path[0] == "sessions":
            self._sessions(method, path[1:], instance)
        elif path == ["jobs"] and method == "POST":
            self._submit(instance)
        elif path == ["jobs"]:
            self._list()
        elif path[0] == "jobs":
            self._job(method, path[1:])
        else:
            self._error(404, "no such path")

    def _backends(self, path: list[str]) -> None:
        service = self.service
        if not path:
            found = []
            for name in service.names:
                config = devices.configuration(name)
                waiting = sum(j.backend == name and j.status not in FINAL for j in service.jobs.values())
                online = "offline" if service.offline.get(name) == "offline" else "online"
                found.append(
                    {
                        "name": name,
                        "qubits": config["n_qubits"],
                        "queue_length": waiting,
                        "is_simulator": False,
                        "status": {"name": online, "reason": "available"},
                    }
                )
            self._answer(200, {"devices": found})
            return
        name = path[0]
        if name not in service.names:
            self._error(404, f"backend {name} not found", 1211)
        elif path[1:] == ["configuration"]:
            self._answer(200, devices.configuration(name))
        elif path[1:] == ["properties"]:
            self._answer(200, devices.properties(name, service.recalibrations.get(name, 0)))
        elif path[1:] == ["status"]:
            how = service.offline.get(name)
            waiting = sum(j.backend == name and j.status not in FINAL for j in service.jobs.values())
            self._answer(
                200,
                {
                    "state": how != "offline",
                    "status": how or "active",
                    "length_queue": waiting,
                    "backend_version": "1.0.0",
                },
            )

    def _sessions(self, method: str, path: list[str], instance: str) -> None:
        service = self.service
        if not path:
            wanted = json.loads(self.body)
            mode = wanted.get("mode", "dedicated")
            if mode == "dedicated" and (service.plan(instance) == "open" or service.show("refuse_session")):
                self._error(400, "You are not authorized to run a session when using the open plan.", 1352)
                return
            if service.show("refuse_session_503"):
                self._error(503, "Service unavailable")
                return
            session = service.open_session(wanted.get("backend", ""), mode, instance, wanted.get("max_ttl"))
            self._answer(201, {"id": session.id, **service.describe(session)})
            return
        session_or_none = service.sessions.get(path[0])
        if session_or_none is None:
            self._error(404, "Session not found.", 1216)
            return
        if method in ("PATCH", "DELETE"):
            service.close_session(session_or_none, cancel=method == "DELETE")
            self._answer(204, None)
            return
        self._answer(200, service.describe(session_or_none))

    def _submit(self, instance: str) -> None:
        service = self.service
        if service.show("502_before"):
            self._error(502, "Bad gateway")
            return
        per_minute = service.settings["per_minute"]
        with service.lock:
            service.submissions = [t for t in service.submissions if t > time.time() - 60]
            if per_minute and len(service.submissions) >= per_minute:
                self._error(429, "Too many requests.", 1429)
                return
            service.submissions.append(time.time())
        payload = json.loads(self.body)
        if payload.get("backend") not in service.names:
            self._error(404, "backend not found", 1211)
            return
        if service.offline.get(payload["backend"]) == "offline":
            self._error(400, f"Backend {payload['backend']} is offline.", 1210)
            return
        session = payload.get("session_id")
        if session is not None and not (session in service.sessions and service.sessions[session].accepting):
            self._error(400, "The session is closed.", 1217)
            return
        if len(self.body) > service.settings["largest_input"]:
            self._error(413, "Payload too large.", 1413)
            return
        try:
            job = service.accept(payload, instance, len(self.body))
        except Rejected as error:
            self._error(400, str(error), 1517)
            return
        if service.show("drop_after"):
            raise Gone
        if service.show("502_after"):
            self._error(502, "Bad gateway")
            return
        stalled = service.show("stall_submit")
        if stalled:
            time.sleep(stalled.seconds)
        self._answer(200, {"id": job.id, "backend": job.backend, "session_id": job.session})

    def _list(self) -> None:
        pending = self.query.get("pending", [None])[0]
        found = self.service.find(
            self.query.get("tags", []),
            None if pending is None else pending == "true",
            self.query.get("session_id", [None])[0],
        )
        offset, limit = int(self.query.get("offset", ["0"])[0]), int(self.query.get("limit", ["200"])[0])
        shown = [self.service.show_job(j) for j in found[offset : offset + limit]]
        self._answer(200, {"jobs": shown, "count": len(found), "limit": limit, "offset": offset})

    def _job(self, method: str, path: list[str]) -> None:
        service = self.service
        job = service.jobs.get(path[0])
        if job is None:
            self._error(404, "Job not found.", 1291)
        elif path[1:] == ["results"]:
            if job.status != "Completed":
                self._answer(204, None)
                return
            text = (job.results or "").encode()
            if service.show("drop_download"):
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text[: len(text) // 2])
                self.wfile.flush()
                raise Gone
            self._answer(200, text)
        elif path[1:] == ["cancel"]:
            if service.cancel(job):
                self._answer(204, None)
            else:
                self._error(409, "Job is in a final state.", 1295)
        elif path[1:] == ["metrics"]:
            self._answer(200, service.metrics(job))
        elif path[1:] == ["logs"]:
            self._answer(200, b"")
        elif path[1:] == ["tags"]:
            job.tags = json.loads(self.body)["tags"]
            self._answer(204, None)
        elif method == "DELETE":
            del service.jobs[job.id]
            self._answer(204, None)
        else:
            self._answer(200, service.show_job(job))

    def _control(self, method: str, path: list[str]) -> None:
        service = self.service
        told = json.loads(self.body) if self.body else {}
        if path == ["misbehave"]:
            with service.lock:
                service.trouble.append(Misbehaviour(**told))
        elif path == ["settings"]:
            unknown = set(told) - set(service.settings)
            if unknown:
                self._error(400, f"no setting {', '.join(sorted(unknown))}; there are {', '.join(service.settings)}")
                return
            service.settings.update(told)
        elif path == ["recalibrate"]:
            service.recalibrations[told["backend"]] = service.recalibrations.get(told["backend"], 0) + 1
        elif path == ["devices"]:
            service.names = tuple(told["names"])
        elif path == ["status"]:
            service.offline[told["backend"]] = told["status"]
        elif path == ["expire"]:
            service.tokens.clear()
        elif path == ["release"]:
            for job in list(service.jobs.values()):
                job.released.set()
        elif path == ["calm"]:
            service.trouble = [one for one in service.trouble if one.kind in told.get("keep", ())]
        elif path == ["reset"]:
            service.reset()
        elif path != ["report"]:
            self._error(
                404,
                "control knows misbehave, calm, settings, recalibrate, devices, status, expire, release, reset, report",
            )
            return
        self._answer(200, service.report())

    def _error(self, status: int, message: str, code: int = 0) -> None:
        self._answer(status, {"errors": [{"code": code, "message": message}], "trace": "loopback"})

    def _answer(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        if not isinstance(sys.exception(), (ConnectionError, ValueError)):
            traceback.print_exc()


def listen(service: Service, port: int = 0) -> Server:
    """A server for that state; ``port`` 0 takes a free one."""
    return Server(("127.0.0.1", port), type("Bound", (Handler,), {"service": service}))


def environment(port: int, key: str, plan: str) -> dict[str, str]:
    """What makes the unmodified client talk to the service."""
    here = f"http://127.0.0.1:{port}"
    return {
        "QISKIT_IBM_TOKEN": key,
        "QISKIT_IBM_URL": here + PREFIX,
        "QISKIT_IBM_INSTANCE": crn(plan),
        "IAM_URL": here,
        "QISKIT_IBM_CHANNEL": "ibm_quantum_platform",
        "GLOBAL_SEARCH_URL": here,
        "GLOBAL_CATALOG_URL": here + "/catalog",
    }
