"""What the checks of deploy/ share: command line, kustomize, and processes that are always ended."""

import argparse
import contextlib
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.request

import yaml

_args = None
# Each process of a test must be up within this; generous, since a sanitizer build on a busy machine is slow.
START_TIMEOUT_S = 60


def main():
    global _args
    parser = argparse.ArgumentParser()
    parser.add_argument("--baton", required=True, help="the built binary")
    parser.add_argument("--source", required=True, help="the source tree")
    _args, rest = parser.parse_known_args()
    # The tests import this file as `harness`; running one makes the test itself __main__.
    sys.modules["harness"]._args = _args
    unittest.main(module="__main__", argv=[sys.argv[0], *rest], verbosity=2)


def baton():
    return str(pathlib.Path(_args.baton).resolve())


def source():
    return pathlib.Path(_args.source).resolve()


def tool(name):
    return str(pathlib.Path(sys.executable).parent / name)


def render_manifests(folder):
    """Every object of a folder of deploy/kubernetes, or of a copy of it, as kustomize renders it."""
    path = source() / "deploy/kubernetes" / folder  # an absolute folder stands for itself
    rendered = subprocess.run([tool("kubectl"), "kustomize", str(path)],
                              check=True, capture_output=True, text=True).stdout
    return [obj for obj in yaml.safe_load_all(rendered) if obj]


def container_of(workload):
    """The one container of a Deployment or StatefulSet."""
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return container


def environment_of(workload):
    """A pod's environment as the kubelet makes it: fields of labels, then $(NAME) of what stands above."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    env = {}
    for entry in container_of(workload).get("env", []):
        if "valueFrom" in entry:
            path = entry["valueFrom"]["fieldRef"]["fieldPath"]
            env[entry["name"]] = labels[re.fullmatch(r"metadata\.labels\['(.+)'\]", path).group(1)]
        else:
            env[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda m: env[m.group(1)], entry["value"])
    return env


def config_map_file(objects):
    """The text of the one configuration file."""
    return next(o for o in objects if o["kind"] == "ConfigMap")["data"]["baton.yaml"]


@contextlib.contextmanager
def process(arguments, log, env=None):
    """Runs a command, its output going to `log`; ends it whatever happens."""
    with open(log, "wb") as out:
        child = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        child.wait()


def wait_until(condition, what, log=None, child=None, timeout_s=START_TIMEOUT_S):
    """Polls until `condition()` is true and returns its value; fails with the process's log otherwise."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        if child is not None and child.poll() is not None:
            break
        time.sleep(0.05)
    tail = pathlib.Path(log).read_text(errors="replace")[-4000:] if log else ""
    status = f", exit status {child.returncode}" if child is not None and child.poll() is not None else ""
    raise AssertionError(f"waited {timeout_s} s in vain for {what}{status}\n{tail}")


_given_ports = set()


def free_port():
    """A port for a process that is told it: below those that the system gives to whoever wants any (where they leave
    room), so that nobody gets it by chance before that process listens."""
    first_ephemeral = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    end = first_ephemeral if first_ephemeral > 20000 else 65536
    for _ in range(1000):
        port = random.randrange(10000, end)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                return port
    raise AssertionError(f"no free port from 10000 to {end}")


def http_ok(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
