"""Brings deploy/docker-compose.yml up for real, streams through HAProxy, takes nodes away, and sees the stream go on.

Run as root on Debian or Ubuntu by `cargo xtask compose`. Installs Docker Engine and Compose if they are not there, and starts a
`dockerd` of its own, with its own data, if none answers. No image is pulled: stand-ins are made of this machine's own programs and
the libraries they load, with the paths and commands of the official images. The image of Everthread itself is built by
deploy/Dockerfile from the binary that EVERTHREAD_BIN names, on such a stand-in of its base.

Whatever it started it ends: containers, volumes, networks, and its dockerd with the rules and the bridge that this leaves behind.
"""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATIENCE = 60  # seconds, for anything that is waited for
PORT = int(os.environ.get("PORT", "17400"))
PROMETHEUS_PORT = int(os.environ.get("PROMETHEUS_PORT", "19090"))
TOKEN = "compose-test-token"
PROJECT = "everthreadtest"
BRIDGE = "docker0"
PACKAGES = {
    "dockerd": "docker.io", "docker-compose": "docker-compose", "iptables": "iptables",
    "redis-server": "redis-server", "haproxy": "haproxy", "prometheus": "prometheus",
}
# Image, programs in it, changes to its configuration: as the official images have them.
STAND_INS = {
    "everthread-test/runtime": ([], ["USER 65532:65532"]),
    "everthread-test/redis": (["redis-server", "redis-cli"], ["WORKDIR /data", "VOLUME /data"]),
    "everthread-test/haproxy": (["haproxy"], ['CMD ["haproxy","-f","/usr/local/etc/haproxy/haproxy.cfg"]']),
    "everthread-test/prometheus": (
        ["prometheus"],
        ['CMD ["prometheus","--config.file=/etc/prometheus/prometheus.yml","--storage.tsdb.path=/prometheus"]'],
    ),
}


def say(text):
    print(f"compose: {text}", flush=True)


def run(*command, check=True, **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(command, check=check, text=True, **options)


def output(*command):
    return run(*command, stdout=subprocess.PIPE).stdout


def wait_until(what, look, patience=PATIENCE):
    """Looks until `look` answers something true, and returns that."""
    end = time.monotonic() + patience
    last = None
    while time.monotonic() < end:
        try:
            found = look()
            if found:
                return found
        except (OSError, ValueError, KeyError) as error:
            last = error
        time.sleep(0.1)
    raise SystemExit(f"compose: error: not within {patience} s: {what} ({last})")


# -- Docker ------------------------------------------------------------------------------------------------------------


def install():
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        say(f"installing {' '.join(missing)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        quiet = {"env": environment, "stdout": subprocess.DEVNULL}
        run("apt-get", "update", **quiet)
        run("apt-get", "install", "--yes", "--no-install-recommends", *missing, **quiet)


@contextlib.contextmanager
def docker():
    """A Docker Engine that answers: the one there is, or one of our own."""
    if run("docker", "info", check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        yield
        return
    place, had_bridge = tempfile.mkdtemp(prefix="everthread-docker-"), has_bridge()
    socket = f"unix://{place}/docker.sock"
    say("no Docker answers: starting a dockerd for this test")
    with open(f"{place}/log", "w") as log:
        daemon = subprocess.Popen(
            ["dockerd", "--host", socket, "--data-root", f"{place}/data", "--exec-root", f"{place}/run",
             "--pidfile", f"{place}/pid"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
    os.environ["DOCKER_HOST"] = socket
    try:
        quiet = {"check": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            wait_until("dockerd answers", lambda: run("docker", "info", **quiet).returncode == 0)
        except SystemExit:
            say(open(f"{place}/log").read()[-4000:])
            raise
        yield
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE)
        shutil.rmtree(place, ignore_errors=True)
        if not had_bridge:
            remove_rules()


def has_bridge():
    return os.path.exists(f"/sys/class/net/{BRIDGE}")


def remove_rules():
    """What a dockerd does not take with it: as long as its rules stand, the kernel tracks every connection of the machine."""
    kept = [line for line in output("iptables-save").splitlines() if not re.search(r"DOCKER|\bdocker0\b", line)]
    subprocess.run(["iptables-restore"], check=True, text=True, input="\n".join([*kept, ""]))
    run("ip", "link", "delete", BRIDGE, check=False, stderr=subprocess.DEVNULL)


def libraries(program):
    """What a program loads, by the name under which it looks for it."""
    listed = output("ldd", program)
    return re.findall(r"(?:=> )?(/[^ ]+) \(0x", listed)


def stand_in(name, programs, changes):
    """An image of programs of this machine and what they need, without a shell."""
    files = set()
    for program in programs:
        path = shutil.which(program)
        files |= {path, *libraries(path)}
    # What every image with the C library has, and what it opens only when it looks names up.
    files |= {path for path in libraries(shutil.which("env")) if os.path.exists(path)}
    for pattern in ("libgcc_s.so.1", "libm.so.6", "libresolv.so.2", "libnss_dns.so.2", "libnss_files.so.2"):
        files |= {f"{d}/{pattern}" for d in ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu") if os.path.exists(f"{d}/{pattern}")}
    files |= {path for path in ("/etc/ssl/certs/ca-certificates.crt",) if os.path.exists(path)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in sorted(files):
            tar.add(os.path.realpath(path), arcname=path)
        for path, text in {
            "/etc/passwd": "root:x:0:0:root:/:/none\nnonroot:x:65532:65532:nonroot:/:/none\n",
            "/etc/group": "root:x:0:\nnonroot:x:65532:\n",
            "/etc/nsswitch.conf": "hosts: files dns\n",
        }.items():
            info = tarfile.TarInfo(path)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        folder = tarfile.TarInfo("/tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    changes = ["ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *changes]
    flags = [part for change in changes for part in ("--change", change)]
    subprocess.run(["docker", "import", *flags, "-", name], input=archive.getvalue(), check=True, stdout=subprocess.DEVNULL)


def build(binary):
    """The image by its Dockerfile, with the binary that is there instead of one compiled in a container."""
    with tempfile.TemporaryDirectory() as context:
        shutil.copy(binary, f"{context}/everthread")
        subprocess.run(["strip", f"{context}/everthread"], check=False, stdin=subprocess.DEVNULL)
        run(
            docker_program(), "build", "--quiet", "--file", f"{TOP}/deploy/Dockerfile", "--tag", "everthread-test/everthread",
            "--build-arg", "BINARY=prebuilt", "--build-arg", "RUNTIME=everthread-test/runtime",
            "--build-arg", "REVISION=of-this-test", context,
            env={**os.environ, "DOCKER_BUILDKIT": "1"}, stdout=subprocess.DEVNULL,
        )
    about = json.loads(output("docker", "image", "inspect", "everthread-test/everthread"))[0]
    labels, user = about["Config"]["Labels"], about["Config"]["User"]
    assert labels["org.opencontainers.image.revision"] == "of-this-test", labels
    assert user == "65532:65532", user
    say(f"image: {about['Size'] / 1e6:.0f} MB, user {user}, revision in its label")


def embedded():
    """One container and a volume: the store of its own, which is there again for the next container."""
    volume, sessions = f"{PROJECT}-data", None
    try:
        for found in ([], ["kept"]):
            name = output("docker", "run", "--detach", "--read-only", "--volume", f"{volume}:/data", "--publish", "127.0.0.1::7400",
                          "--env", f"EVERTHREAD_TOKEN={TOKEN}", "everthread-test/everthread").strip()
            try:
                ready = ["docker", "exec", name, "/usr/local/bin/everthread", "health", "--ready"]
                quiet = {"check": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                wait_until("a node with a volume of its own is ready", lambda: run(*ready, **quiet).returncode == 0)
                base = "http://" + output("docker", "port", name, "7400/tcp").split()[0] + "/v1/sessions"
                sessions = [session["session"] for session in json.loads(fetch(base))["sessions"]]
                assert sessions == found, sessions
                if not found:
                    fetch(base, {"session": "kept", "agent": "guide"})
            except BaseException:
                run("docker", "logs", name, check=False)
                raise
            finally:
                run("docker", "rm", "--force", name, stdout=subprocess.DEVNULL)
    finally:
        run("docker", "volume", "rm", "--force", volume, stdout=subprocess.DEVNULL)
    say("a volume at /data: the embedded store is made there, and found again")


def docker_program():
    """Debian's own client builds with BuildKit by itself; newer ones want a plugin."""
    return "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"


def compose(*arguments, **options):
    return run("docker-compose", "--project-name", PROJECT, "--file", f"{TOP}/deploy/docker-compose.yml", *arguments, **options)


# -- the deployment as its users see it --------------------------------------------------------------------------------


def fetch(url, data=None, subject="ann"):
    headers = {"authorization": f"Bearer {TOKEN}", "everthread-subject": subject, "content-type": "application/json"}
    body = None if data is None else json.dumps(data).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        return answer.read().decode()


def api(path, data=None):
    return json.loads(fetch(f"http://127.0.0.1:{PORT}/v1/sessions{path}", data))


def container(service):
    return output("docker-compose", "--project-name", PROJECT, "--file", f"{TOP}/deploy/docker-compose.yml", "ps", "-q", service).strip()


def address(service):
    networks = json.loads(output("docker", "inspect", container(service)))[0]["NetworkSettings"]["Networks"]
    return networks[f"{PROJECT}_front"]["IPAddress"]


def count(service, metric):
    for line in fetch(f"http://{address(service)}:7401/metrics").splitlines():
        if line.startswith(metric + " "):
            return float(line.split()[-1])
    return 0.0


def is_ready(service):
    return "ok" in fetch(f"http://{address(service)}:7401/readyz")


def health(service):
    return json.loads(output("docker", "inspect", container(service)))[0]["State"]["Health"]["Status"]


class Tail:
    """`everthread tail` through HAProxy: what a person at a terminal sees."""

    def __init__(self, binary, session, folder):
        self.path = f"{folder}/{session}.txt"
        self.file, self.notes = open(self.path, "wb"), open(self.path + ".notes", "wb")
        self.process = subprocess.Popen(
            [binary, "tail", session, "--from", "start", "--url", f"ws://127.0.0.1:{PORT}", "--token", TOKEN],
            stdin=subprocess.DEVNULL, stdout=self.file, stderr=self.notes,
        )

        self.is_watched, self.longest_stall = True, 0.0
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def watch(self):
        """The longest time in which the follower saw nothing new, from the first it saw of anything."""
        size, since = 0, time.monotonic()
        while self.is_watched:
            now, new = time.monotonic(), os.path.getsize(self.path)
            if size:
                self.longest_stall = max(self.longest_stall, now - since)
            if new != size:
                size, since = new, now
            time.sleep(0.01)

    def text(self, of=""):
        with open(self.path + of, encoding="utf-8", errors="replace") as file:
            return file.read()

    def end(self):
        self.is_watched = False
        self.watcher.join()
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.file.close()
        self.notes.close()


def answer_of(session):
    """The text of the newest answer, and whether its run has ended."""
    state = api(f"/{session}/state")
    messages = [m for m in state["messages"] if m.get("role") == "assistant"]
    if not messages:
        return "", False
    text = "".join(part["value"] for part in messages[-1]["parts"] if part["kind"] == "text")
    return text, messages[-1]["status"] != "streaming"


def plain(text):
    """Without spaces: a terminal indents and wraps."""
    return re.sub(r"\s+", "", text)


def stream_while(binary, folder, session, title, disturb):
    """Asks, disturbs while the answer is written, and compares what a follower saw with what the log says."""
    api("", {"session": session, "agent": "guide"})
    tail = Tail(binary, session, folder)
    try:
        # The longest of its answers: nine seconds.
        api(f"/{session}/input", {"text": "Hello"})
        wait_until(f"{title}: the answer begins", lambda: len(answer_of(session)[0]) > 60)
        disturb()
        _, has_ended = wait_until(f"{title}: a node answers", lambda: answer_of(session))
        assert not has_ended, f"{title}: the answer had ended by then, so this shows nothing"
        wait_until(f"{title}: the answer ends", lambda: answer_of(session)[1], 180)
        text, _ = answer_of(session)
        wait_until(f"{title}: the follower has all of it", lambda: plain(text) in plain(tail.text()))
        assert plain(tail.text()).count(plain(text)) == 1, "the follower saw the answer twice"
        notes = tail.text(".notes").count("disconnected")
        say(f"{title}: {len(text)} characters, whole and once; "
            f"nothing new for {tail.longest_stall:.1f} s at most; the follower reconnected {notes} times")
    finally:
        tail.end()


def carrier():
    """The node that carries the follower's connection."""
    return wait_until(
        "a node carries the follower",
        lambda: next((s for s in ("edge-1", "edge-2") if count(s, 'everthread_connections{kind="client"}') > 0), None),
    )


def prometheus(path, **query):
    url = f"http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    return json.loads(fetch(url))["data"]


def dashboard_queries():
    with open(f"{TOP}/deploy/grafana/everthread.json", encoding="utf-8") as file:
        panels = json.load(file)["panels"]
    for panel in panels:
        for target in panel.get("targets", []):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
            yield panel["title"], text.replace("$job", ".*").replace("$instance", ".*")


def observe():
    wait_until("Prometheus scrapes all", lambda: [
        t["health"] for t in prometheus("targets")["activeTargets"]] == ["up"] * 3)
    rules = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10 and all(rule["health"] != "err" for rule in rules), rules
    with_data, queries = 0, list(dashboard_queries())
    for title, query in queries:
        try:
            with_data += bool(prometheus("query", query=query)["result"])
        except urllib.error.HTTPError as error:
            raise SystemExit(f"compose: error: the dashboard's {title}: {query}: {error.read().decode()}") from error
    say(f"Prometheus: 3 targets up, {len(rules)} rules healthy; {len(queries)} queries of the dashboard are valid, {with_data} have data")
    assert with_data > len(queries) / 2, "most panels are empty"


def redis(service, *command):
    return output("docker", "exec", container(service), "redis-cli", *command).strip()


def trial(binary, folder):
    for edge in ("edge-1", "edge-2"):
        wait_until(f"{edge} is ready", lambda edge=edge: is_ready(edge))
    wait_until("HAProxy has a node", lambda: "sessions" in json.dumps(api("")))
    say("up: both nodes ready, HAProxy answers")

    stream_while(binary, folder, "undisturbed", "nothing happens", lambda: None)

    killed = []

    def kill():
        killed.append(carrier())
        compose("kill", "-s", "SIGKILL", killed[0], stderr=subprocess.DEVNULL)
    stream_while(binary, folder, "killed", "the node that carries the stream is killed", kill)

    compose("up", "--detach", "--no-build", killed[0], stderr=subprocess.DEVNULL)
    wait_until(f"{killed[0]} is back", lambda: is_ready(killed[0]))
    wait_until("HAProxy sees it", lambda: fetch(f"http://{address('haproxy')}:8404/metrics").count(
        'haproxy_server_status{proxy="edges",server="edge-1",state="UP"} 1') and fetch(
        f"http://{address('haproxy')}:8404/metrics").count('haproxy_server_status{proxy="edges",server="edge-2",state="UP"} 1'))

    def drain():
        node = carrier()
        name = container(node)
        # Not by Compose, which takes seconds of its own to begin. The grace period is that of the file.
        run(docker_program(), "stop", name, stdout=subprocess.DEVNULL)
        code = json.loads(output("docker", "inspect", name))[0]["State"]["ExitCode"]
        assert code == 0, f"{node} ended with {code}"
    stream_while(binary, folder, "drained", "the node that carries the stream drains", drain)
    compose("up", "--detach", "--no-build", "edge-1", "edge-2", stderr=subprocess.DEVNULL)
    for edge in ("edge-1", "edge-2"):
        wait_until(f"{edge} is ready", lambda edge=edge: is_ready(edge))

    def restart():
        compose("restart", "redis", stderr=subprocess.DEVNULL)
    stream_while(binary, folder, "restarted", "Redis restarts", restart)

    wait_until("the replica has everything", lambda: "master_link_status:up" in redis("redis-replica", "info", "replication")
               and redis("redis-replica", "dbsize") == redis("redis", "dbsize"))
    policy = redis("redis", "config", "get", "stream-node-max-bytes").split()[-1]
    assert policy == "1024", policy
    for session in ("undisturbed", "killed", "drained", "restarted"):
        assert answer_of(session)[1], session
    say("Redis: the replica is level, its settings are those of redis.conf, every session is there")

    for edge in ("edge-1", "edge-2"):
        wait_until(f"{edge} is healthy for Docker", lambda edge=edge: health(edge) == "healthy")
    observe()


def main():
    binary = os.environ.get("EVERTHREAD_BIN")
    if not binary or not os.path.exists(binary):
        raise SystemExit("compose: error: EVERTHREAD_BIN must name the binary of Everthread")
    install()
    with docker(), tempfile.TemporaryDirectory() as folder:
        for name, (programs, changes) in STAND_INS.items():
            stand_in(name, programs, changes)
        build(binary)
        embedded()
        os.environ.update({
            "EVERTHREAD_TOKEN": TOKEN, "PORT": str(PORT), "PROMETHEUS_PORT": str(PROMETHEUS_PORT),
            "NOFILE": str(min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
            "EVERTHREAD_IMAGE": "everthread-test/everthread", "REDIS_IMAGE": "everthread-test/redis",
            "HAPROXY_IMAGE": "everthread-test/haproxy", "PROMETHEUS_IMAGE": "everthread-test/prometheus",
        })
        try:
            say("up")
            compose("up", "--detach", "--no-build")
            trial(binary, folder)
        except BaseException:
            compose("ps", check=False)
            compose("logs", "--no-color", "--tail", "40", check=False)
            raise
        finally:
            compose("down", "--volumes", "--timeout", "15", check=False, stderr=subprocess.DEVNULL)
    print("compose: 1 passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())
