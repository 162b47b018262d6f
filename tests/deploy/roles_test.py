"""The role commands of the manifests run as local processes on the ConfigMap's file and complete a request.

Only addresses differ from the cluster: environment variables, which override the file, put every port on loopback. The
router gets a checkpoint directory without weights.
"""

import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

import harness

LOCAL_ANY = "127.0.0.1:0"


class RolesTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        objects = harness.render_manifests()
        self.config = self.dir / "baton.yaml"
        self.config.write_text(harness.config_map_file(objects))
        self.containers = {o["metadata"]["labels"]["app.kubernetes.io/component"]:
                           o["spec"]["template"]["spec"]["containers"][0]
                           for o in objects if o["kind"] in ("Deployment", "StatefulSet")}

    def router_checkpoint(self):
        """The demo model as a router needs it: its JSON files, no weights."""
        demo = harness.source() / "models/demo"
        folder = self.dir / "router" / demo.name
        folder.mkdir(parents=True)
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo / name, folder)
        return folder

    def start(self, role, env):
        """Starts the container's command; returns the process and its ports once it serves."""
        arguments = [a.replace("/etc/baton/baton.yaml", str(self.config)) for a in self.containers[role]["args"]]
        self.assertIn(str(self.config), " ".join(arguments))
        log, ports = self.dir / f"{role}.log", self.dir / f"{role}.ports"
        child = self.enterContext(harness.process(
            [harness.baton(), *arguments, f"--port-file={ports}"], log,
            {"BATON_SERVER_HTTP_ADDRESS": LOCAL_ANY, **env}))
        harness.wait_until(ports.exists, f"the ports of {role}", log, child)
        bound = dict(line.split("=") for line in ports.read_text().split())
        harness.wait_until(lambda: harness.http_ok(f"http://127.0.0.1:{bound['http']}/health"),
                           f"{role} to be alive", log, child)
        return child, bound, log

    def test_three_roles_serve_a_completion_and_drain(self):
        prefill, prefill_ports, prefill_log = self.start("prefill", {"BATON_PREFILL_ADDRESS": LOCAL_ANY})
        decode, decode_ports, decode_log = self.start("decode", {"BATON_DECODE_ADDRESS": LOCAL_ANY})
        router, router_ports, router_log = self.start("router", {
            "BATON_SERVER_GRPC_ADDRESS": LOCAL_ANY,
            "BATON_MODEL_PATH": str(self.router_checkpoint()),
            "BATON_ROUTER_PREFILL_WORKERS": f"127.0.0.1:{prefill_ports['grpc']}",
            "BATON_ROUTER_DECODE_WORKERS": f"127.0.0.1:{decode_ports['grpc']}"})
        harness.wait_until(lambda: harness.http_ok(f"http://127.0.0.1:{router_ports['http']}/ready"),
                           "the router to reach its workers", router_log, router)
        done = subprocess.run([harness.baton(), "complete", "--server", f"127.0.0.1:{router_ports['grpc']}",
                               "--max-tokens", "8", "The command"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.strip(), "the completion is empty")
        # Workers name themselves by the port that they got, not by the 0 that they asked for.
        self.assertRegex(prefill_log.read_text(), rf'"peer": ?"[^"]+:{decode_ports["grpc"]}"')
        # What Kubernetes does to end a pod, front to back.
        for name, child, log in (("router", router, router_log), ("decode", decode, decode_log),
                                 ("prefill", prefill, prefill_log)):
            child.send_signal(signal.SIGTERM)
            self.assertEqual(child.wait(timeout=30), 0, f"{name} did not drain\n{log.read_text(errors='replace')}")


if __name__ == "__main__":
    harness.main()
