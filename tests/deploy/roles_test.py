"""The role commands of the manifests run as local processes on the ConfigMap's file and complete a request.

Only addresses differ from the cluster: environment variables, which override the file, put every port on loopback, and
a rank's number stands in one, where in the cluster it is in the pod's name. The router gets a checkpoint directory
without weights.
"""

import contextlib
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest
import urllib.request

import harness

LOCAL_ANY = "127.0.0.1:0"


class Pod:
    """A process that runs the container of a role."""

    def __init__(self, name, child, log, http, ports):
        self.name, self.child, self.log, self.http, self.ports_file = name, child, log, http, ports

    def probe(self, path):
        return harness.http_ok(f"http://{self.http}{path}")

    def metric(self, series):
        """Its value; None where the process has no such series, or does not answer yet."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return None
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series + " ")), None)

    def wait_for(self, condition, what):
        harness.wait_until(condition, f"{self.name} to be {what}", self.log, self.child)

    def ports(self):
        """Once it serves."""
        self.wait_for(self.ports_file.exists, "serving")
        return dict(line.split("=") for line in self.ports_file.read_text().split())

    def text(self):
        return self.log.read_text(errors="replace")


class Cluster(unittest.TestCase):
    folder = ""

    def setUp(self):
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        objects = harness.render_manifests(self.folder)
        self.config = self.dir / "baton.yaml"
        self.config.write_text(harness.config_map_file(objects))
        self.workloads = {o["metadata"]["labels"]["app.kubernetes.io/component"]: o
                          for o in objects if o["kind"] in ("Deployment", "StatefulSet")}

    def router_checkpoint(self):
        """The demo model as a router needs it: its JSON files, no weights."""
        demo = harness.source() / "models/demo"
        folder = self.dir / "router" / demo.name
        folder.mkdir(parents=True)
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo / name, folder)
        return folder

    def start(self, role, env, name=None):
        """Starts the container's command."""
        workload, name = self.workloads[role], name or role
        arguments = [a.replace("/etc/baton/baton.yaml", str(self.config))
                     for a in harness.container_of(workload)["args"]]
        self.assertIn(str(self.config), " ".join(arguments))
        log, ports, http = self.dir / f"{name}.log", self.dir / f"{name}.ports", f"127.0.0.1:{harness.free_port()}"
        ports.unlink(missing_ok=True)  # of a pod that was started before
        child = self.enterContext(harness.process(
            [harness.baton(), *arguments, f"--port-file={ports}"], log,
            {**harness.environment_of(workload), "BATON_SERVER_HTTP_ADDRESS": http, **env}))
        return Pod(name, child, log, http, ports)

    def start_router(self, prefill, decode):
        """Over the pods that it may call; returns it ready."""
        def addresses(pods):
            return ",".join(f"127.0.0.1:{pod.ports()['grpc']}" for pod in pods)
        router = self.start("router", {
            "BATON_SERVER_GRPC_ADDRESS": LOCAL_ANY,
            "BATON_MODEL_PATH": str(self.router_checkpoint()),
            "BATON_ROUTER_PREFILL_WORKERS": addresses(prefill),
            "BATON_ROUTER_DECODE_WORKERS": addresses(decode)})
        router.wait_for(lambda: router.probe("/ready"), "connected to its workers")
        return router

    def complete(self, router):
        done = subprocess.run([harness.baton(), "complete", "--server", f"127.0.0.1:{router.ports()['grpc']}",
                               "--max-tokens", "8", "--temperature", "0", "The command"],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.strip(), "the completion is empty")
        return done.stdout

    def end(self, *together):
        """What Kubernetes does to end pods."""
        for pod in together:
            pod.child.send_signal(signal.SIGTERM)
        for pod in together:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pod.child.wait(timeout=30)
            self.assertEqual(pod.child.returncode, 0, f"{pod.name} did not drain\n{pod.text()}")


class RolesTest(Cluster):
    folder = "base"

    def test_three_roles_serve_a_completion_and_drain(self):
        prefill = self.start("prefill", {"BATON_PREFILL_ADDRESS": LOCAL_ANY})
        decode = self.start("decode", {"BATON_DECODE_ADDRESS": LOCAL_ANY})
        router = self.start_router([prefill], [decode])
        for pod in (prefill, decode, router):
            self.assertTrue(pod.probe("/health"), pod.name)
        self.complete(router)
        # Workers name themselves by the port that they got, not by the 0 that they asked for.
        self.assertRegex(prefill.text(), rf'"peer": ?"[^"]+:{decode.ports()["grpc"]}"')
        for pod in (router, decode, prefill):  # front to back
            self.end(pod)


class GroupsTest(Cluster):
    folder = "groups"

    def setUp(self):
        super().setUp()
        # A pod that is started again has its old addresses, for the group and for routers.
        self.addresses, self.grpc = ({role: [f"127.0.0.1:{harness.free_port()}" for _ in range(self.ranks(role))]
                                      for role in ("prefill", "decode")} for _ in range(2))

    def ranks(self, role):
        return self.workloads[role]["spec"]["replicas"]

    def start_rank(self, role, rank):
        key = f"BATON_{role.upper()}"
        return self.start(role, {f"{key}_ADDRESS": self.grpc[role][rank], f"{key}_RANK": str(rank),
                                 f"{key}_GROUP_ADDRESSES": ",".join(self.addresses[role])}, f"{role}-{rank}")

    def passes(self, pod, probe):
        return pod.probe(harness.container_of(self.workloads[pod.name.split("-")[0]])[probe]["httpGet"]["path"])

    def start_ranks(self, role):
        """All pods of a group; returns them ready."""
        pods = [self.start_rank(role, rank) for rank in range(self.ranks(role))]
        for pod in pods:
            pod.wait_for(lambda: self.passes(pod, "readinessProbe"), "ready")
        return pods

    def check_what_prefill_ranks_show(self, prefill, decode):
        """Every rank its own passes and hand-offs; the leader alone what the group has in common."""
        for pod in prefill:
            pod.wait_for(lambda: pod.metric('baton_step_seconds_count{role="prefill"}') == 1, "done with its pass")
            self.assertGreater(pod.metric("baton_handoff_sent_bytes_total"), 0, pod.name)
            self.assertEqual(pod.metric("baton_handoff_send_seconds_count"), 1, pod.name)
        sent = sum(pod.metric("baton_handoff_sent_bytes_total") for pod in prefill)
        self.assertEqual(sent, sum(pod.metric("baton_handoff_received_bytes_total") for pod in decode))
        self.assertEqual([pod.metric("baton_prefill_tokens_total") is not None for pod in prefill], [True, False])

    def test_groups_meet_serve_a_completion_and_drain(self):
        follower = self.start_rank("prefill", 1)
        follower.wait_for(lambda: self.passes(follower, "livenessProbe"), "alive")
        self.assertFalse(self.passes(follower, "readinessProbe"), "ready without its leader")
        prefill = [self.start_rank("prefill", 0), follower]
        decode = self.start_ranks("decode")
        for pod in prefill:
            pod.wait_for(lambda: self.passes(pod, "readinessProbe"), "ready")
        router = self.start_router(prefill[:1], decode)
        self.complete(router)
        self.check_what_prefill_ranks_show(prefill, decode)
        self.end(router)
        self.end(*decode)
        self.end(*prefill)

    def test_a_decode_group_goes_on_without_a_pod_and_takes_it_back_in(self):
        prefill, decode = self.start_ranks("prefill"), self.start_ranks("decode")
        router = self.start_router(prefill[:1], decode)
        tokens = self.complete(router)

        def wait_until_masked(pods, ranks):
            for pod in pods:
                pod.wait_for(lambda: self.passes(pod, "readinessProbe"), "ready")
                pod.wait_for(lambda: pod.metric("baton_experts_masked_ranks") == ranks, f"without {ranks} ranks")
                self.assertEqual(pod.metric("baton_experts_uncovered"), 0, pod.name)

        for lost in (3, 0):  # also the rank that leads
            decode[lost].child.kill()
            wait_until_masked(decode[:lost] + decode[lost + 1:], 1)
            self.assertEqual(self.complete(router), tokens)
            decode[lost] = self.start_rank("decode", lost)
            wait_until_masked(decode, 0)
            self.assertEqual(self.complete(router), tokens)
        for together in ([router], decode, prefill):
            self.end(*together)


if __name__ == "__main__":
    harness.main()
