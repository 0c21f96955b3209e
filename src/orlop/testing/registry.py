"""A registry for tests, in memory, on loopback, that can misbehave on command.

    async with Registry() as registry:
        image = registry.add_manifest("team/app", "1", ...)
        registry.misbehave(Fault(path="/blobs/", cut_after=1000))

It speaks as much of the distribution protocol as clients use: HEAD, GET with ranges, uploads in one piece, mounts,
basic and token authorization. Every request is noted in `seen`. What it has is open to tests: `blobs`, `manifests`,
`tags`.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from aiohttp import web

from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Image, Index, Manifest, Platform, RootFS, encode

_ENDLESS_PIECE: Final = b"\0" * 65536
_ROUTES: Final = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers)/(?P<what>[^/]+|uploads/[^/]*)")


@dataclass(slots=True, kw_only=True)
class Fault:
    """Something that goes wrong with the next matching requests.

    Attributes:
        path, method: which requests; `path` is a part of the path with query.
        times: how often; -1 for ever.
        status, headers, body: answer this instead (with `status` alone, an error body of the spec is made).
        set_headers: put these on an otherwise right answer; an empty value removes one.
        drop: close the connection without an answer.
        cut_after: send so many bytes of the body, then break the connection.
        ignore_range: answer a range request with everything.
        wrong_range: answer a range request with another range.
        corrupt: change the last byte of the body.
        append: send these bytes after the body, with a Content-Length that says so.
        endless: send zeros for ever, without Content-Length.
        redirect: send the client to this address; `{path}` stands for path and query.
    """

    path: str = ""
    method: str = ""
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    set_headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    cut_after: int | None = None
    ignore_range: bool = False
    wrong_range: bool = False
    corrupt: bool = False
    append: bytes = b""
    endless: bool = False
    redirect: str = ""

    def matches(self, request: web.BaseRequest) -> bool:
        return self.times != 0 and self.path in request.path_qs and self.method in {"", request.method}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request that came in. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(slots=True, kw_only=True)
class TokenRules:
    """How the token server behaves, which lives at `/token` of the same address.

    Attributes:
        user, password: who gets any token; empty for anybody.
        refresh_token: accepted by POST instead of user and password.
        post: whether it has the OAuth2 variant; else it answers 404.
        realm: told to clients instead of the own one.
        lifetime_s: told to clients; None says nothing.
        answer: this body instead of a token.
    """

    user: str = ""
    password: str = ""
    refresh_token: str = ""
    post: bool = True
    realm: str = ""
    lifetime_s: int | None = 300
    answer: bytes | None = None


class Registry:
    """The registry; start it as an async context manager.

    Args:
        basic: user and password that every request must bring.
        token: every request must bring a token that allows it.
        ssl_context: to serve TLS.
    """

    def __init__(
        self,
        *,
        basic: tuple[str, str] | None = None,
        token: TokenRules | None = None,
        ssl_context: Any = None,
    ) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.basic = basic
        self.token = token
        self.tokens: dict[str, frozenset[str]] = {}
        self._ssl_context = ssl_context
        self._uploads = 0
        self._runner: web.ServerRunner | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._ssl_context)
        await site.start()
        port = self._runner.addresses[0][1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Its address with the scheme."""
        return f"{'https' if self._ssl_context else 'http'}://{self.address}"

    def misbehave(self, fault: Fault) -> Fault:
        """Let something go wrong; faults are looked through in the order they came."""
        self.faults.append(fault)
        return fault

    def requests(self, method: str = "", path: str = "") -> list[Seen]:
        """The requests seen so far, by method and part of the path."""
        return [seen for seen in self.seen if method in {"", seen.method} and path in seen.path]

    def add_blob(self, name: str, data: bytes, media_type: str = media_types.OCI_LAYER) -> Descriptor:
        """Put a blob into a repository."""
        digest = Digest.of(data)
        self.blobs[name, digest] = data
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def add_manifest(
        self, name: str, tag: str | None, data: bytes, media_type: str = media_types.OCI_MANIFEST
    ) -> Descriptor:
        """Put a manifest or index into a repository, under a tag if one is given."""
        digest = Digest.of(data)
        self.manifests[name, digest] = (media_type, data)
        if tag is not None:
            self.tags[name, tag] = digest
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def add_image(
        self, name: str, tag: str | None, layers: Iterable[bytes], platform: Platform | None = None
    ) -> Descriptor:
        """Put an image of uncompressed layers into a repository."""
        blobs = list(layers)
        platform = platform or Platform(os="linux", architecture="amd64")
        config = Image(
            os=platform.os,
            architecture=platform.architecture,
            variant=platform.variant,
            rootfs=RootFS(diff_ids=tuple(Digest.of(layer) for layer in blobs)),
        )
        manifest = Manifest(
            media_type=media_types.OCI_MANIFEST,
            config=self.add_blob(name, encode(config), media_types.OCI_CONFIG),
            layers=tuple(self.add_blob(name, layer) for layer in blobs),
        )
        return self.add_manifest(name, tag, encode(manifest))

    def add_index(self, name: str, tag: str | None, manifests: Iterable[Descriptor]) -> Descriptor:
        """Put an index into a repository."""
        index = Index(media_type=media_types.OCI_INDEX, manifests=tuple(manifests))
        return self.add_manifest(name, tag, encode(index), media_types.OCI_INDEX)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()  # request.read() would refuse more than 1 MiB
        headers = {key.lower(): value for key, value in request.headers.items()}
        self.seen.append(Seen(method=request.method, path=request.path_qs, headers=headers, body=body))
        fault = next((fault for fault in self.faults if fault.matches(request)), None)
        if fault is not None and fault.times > 0:
            fault.times -= 1
        if fault is not None:
            early = self._early(request, fault)
            if early is not None:
                return early
        if request.path == "/token":
            return self._give_token(request, body)
        refused = self._unauthorized(request)
        if refused is not None:
            return refused
        answer = self._route(request, body, fault or Fault())
        if fault is not None:
            for name, value in fault.set_headers.items():
                answer.headers.popall(name, None)
                if value:
                    answer.headers[name] = value
            if fault.cut_after is not None or fault.endless:
                return await self._broken(request, answer, fault)
        return answer

    def _early(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse | None:
        if fault.drop:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault.redirect:
            return web.Response(status=307, headers={"Location": fault.redirect.format(path=request.path_qs)})
        if fault.status:
            body = fault.body or _error("UNKNOWN", f"told to answer {fault.status}")
            return web.Response(status=fault.status, headers=fault.headers, body=body)
        return None

    async def _broken(self, request: web.BaseRequest, answer: web.Response, fault: Fault) -> web.StreamResponse:
        whole = answer.body if isinstance(answer.body, bytes) else b""
        stream = web.StreamResponse(status=answer.status, headers=answer.headers)
        if fault.endless:
            stream.headers.popall("Content-Length", None)
            stream.enable_chunked_encoding()
        else:
            stream.content_length = len(whole)
        await stream.prepare(request)
        if fault.endless:
            while True:
                await stream.write(_ENDLESS_PIECE)
        await stream.write(whole[: fault.cut_after])
        assert request.transport is not None
        request.transport.close()  # what was written still goes out; abort() could drop it
        return stream

    def _unauthorized(self, request: web.BaseRequest) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        if self.basic is not None and given != basic_header(*self.basic):
            return _refusal('Basic realm="tests"')
        if self.token is None:
            return None
        needed = self._needed_scopes(request)
        held = self.tokens.get(given.removeprefix("Bearer "), frozenset())
        if needed <= held:
            return None
        realm = self.token.realm or f"{self.url}/token"
        error = ',error="insufficient_scope"' if given else ""
        return _refusal(f'Bearer realm="{realm}",service="tests",scope="{_joined(needed)}"{error}')

    def _needed_scopes(self, request: web.BaseRequest) -> frozenset[str]:
        match = _ROUTES.fullmatch(request.path)
        if match is None:
            return frozenset()
        actions = {"pull"} if request.method in {"GET", "HEAD"} else {"pull", "push"}
        needed = {f"repository:{match['name']}:{action}" for action in actions}
        if "from" in request.query:
            needed.add(f"repository:{request.query['from']}:pull")
        return frozenset(needed)

    def _give_token(self, request: web.BaseRequest, body: bytes) -> web.Response:
        rules = self.token or TokenRules()
        if rules.answer is not None:
            return web.Response(body=rules.answer, content_type="application/json")
        if request.method == "POST":
            if not rules.post:
                return web.Response(status=404)
            form = dict(pair.split("=", 1) for pair in body.decode().split("&"))
            allowed = _unquoted(form.get("refresh_token", "")) == rules.refresh_token != "" or (
                _unquoted(form.get("username", "")) == rules.user
                and _unquoted(form.get("password", "")) == rules.password
            )
            scopes = _unquoted(form.get("scope", "")).split()
        else:
            given = request.headers.get("Authorization", "")
            allowed = not rules.user or given == basic_header(rules.user, rules.password)
            scopes = request.query.getall("scope", [])
        if not allowed:
            return web.json_response({"details": "incorrect username or password"}, status=401)
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = frozenset(_single_scopes(scopes))
        answer: dict[str, object] = {"token": token}
        if rules.lifetime_s is not None:
            answer["expires_in"] = rules.lifetime_s
        return web.json_response(answer)

    def _route(self, request: web.BaseRequest, body: bytes, fault: Fault) -> web.Response:
        match = _ROUTES.fullmatch(request.path)
        if match is None:
            return web.Response(status=200 if request.path == "/v2/" else 404)
        name, kind, what = match["name"], match["kind"], match["what"]
        if kind == "referrers":
            return self._referrers(request, name, what)
        if kind == "manifests":
            return self._manifest(request, name, what, body, fault)
        if what.startswith("uploads/"):
            return self._upload(request, name, body)
        return self._blob(request, name, what, fault)

    def _manifest(self, request: web.BaseRequest, name: str, what: str, body: bytes, fault: Fault) -> web.Response:
        if request.method == "PUT":
            described = self.add_manifest(name, None, body, request.headers["Content-Type"])
            if ":" not in what:
                self.tags[name, what] = described.digest
            elif what != described.digest:
                return web.Response(status=400, body=_error("DIGEST_INVALID", "digest differs"))
            return web.Response(status=201, headers={"Docker-Content-Digest": described.digest})
        digest = self.tags.get((name, what), what)
        found = self.manifests.get((name, digest))
        if found is None:
            return web.Response(status=404, body=_error("MANIFEST_UNKNOWN", "manifest unknown"))
        headers = {"Content-Type": found[0], "Docker-Content-Digest": digest}
        return self._content(request, found[1], headers, fault)

    def _referrers(self, request: web.BaseRequest, name: str, subject: str) -> web.Response:
        """One to a page, so that whoever does not follow the links misses some."""
        found = []
        for (repository, digest), (media_type, data) in sorted(self.manifests.items()):
            document = json.loads(data)
            if repository == name and document.get("subject", {}).get("digest") == subject:
                artifact_type = document.get("artifactType", "")
                found.append(
                    Descriptor(
                        media_type=media_type, digest=Digest(digest), size=len(data), artifact_type=artifact_type
                    )
                )
        start = int(request.query.get("last", "0"))
        headers = {"Content-Type": media_types.OCI_INDEX}
        if start + 1 < len(found):
            headers["Link"] = f'<{request.path}?last={start + 1}>; rel="next"'
        page = Index(media_type=media_types.OCI_INDEX, manifests=tuple(found[start : start + 1]))
        return web.Response(body=encode(page), headers=headers)

    def _blob(self, request: web.BaseRequest, name: str, digest: str, fault: Fault) -> web.Response:
        data = self.blobs.get((name, digest))
        if data is None:
            return web.Response(status=404, body=_error("BLOB_UNKNOWN", "blob unknown to registry"))
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        return self._content(request, data, headers, fault)

    def _content(self, request: web.BaseRequest, data: bytes, headers: dict[str, str], fault: Fault) -> web.Response:
        status = 200
        body = data[:-1] + bytes([data[-1] ^ 1]) if fault.corrupt else data + fault.append
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", request.headers.get("Range", ""))
        if asked is not None and not fault.ignore_range:
            start = 0 if fault.wrong_range else int(asked[1])
            end = min(int(asked[2]) + 1 if asked[2] else len(body), len(body))
            if start >= len(body):
                return web.Response(status=416)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            body, status = body[start:end], 206
        if request.method == "HEAD":
            return web.Response(status=status, headers={**headers, "Content-Length": str(len(body))})
        return web.Response(status=status, headers=headers, body=body)

    def _upload(self, request: web.BaseRequest, name: str, body: bytes) -> web.Response:
        query = request.query
        if request.method == "POST":
            data = self.blobs.get((query.get("from", ""), query.get("mount", "")))
            if data is not None:
                self.blobs[name, query["mount"]] = data
                return web.Response(status=201, headers={"Docker-Content-Digest": query["mount"]})
            self._uploads += 1
            return web.Response(status=202, headers={"Location": f"/v2/{name}/blobs/uploads/{self._uploads}?state=x"})
        digest = query.get("digest", "")
        if Digest.of(body) != digest:
            return web.Response(status=400, body=_error("DIGEST_INVALID", "provided digest did not match content"))
        self.blobs[name, digest] = body
        return web.Response(status=201, headers={"Docker-Content-Digest": digest})


def basic_header(user: str, password: str) -> str:
    """The `Authorization` header of basic authentication."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _refusal(challenge: str) -> web.Response:
    body = _error("UNAUTHORIZED", "authentication required")
    return web.Response(status=401, headers={"WWW-Authenticate": challenge}, body=body)


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def _unquoted(text: str) -> str:
    from urllib.parse import unquote_plus

    return unquote_plus(text)


def _single_scopes(scopes: Iterable[str]) -> set[str]:
    """`repository:a:pull,push` as one scope for each action."""
    found = set()
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        found |= {f"{resource}:{action}" for action in actions.split(",")}
    return found


def _joined(scopes: Iterable[str]) -> str:
    by_resource: dict[str, list[str]] = {}
    for scope in sorted(scopes):
        resource, _, action = scope.rpartition(":")
        by_resource.setdefault(resource, []).append(action)
    return " ".join(f"{resource}:{','.join(actions)}" for resource, actions in by_resource.items())
