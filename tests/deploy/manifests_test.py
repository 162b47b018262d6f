"""What deploy/kubernetes holds renders, passes a strict schema check and agrees with itself and with the Dockerfile."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import harness
import kubernetes_validate
import yaml

ROLES = ("router", "prefill", "decode")


def of_kind(objects, *kinds):
    return [o for o in objects if o["kind"] in kinds]


def role_of(obj):
    return obj["metadata"]["labels"]["app.kubernetes.io/component"]


def workloads(objects):
    return {role_of(o): o for o in of_kind(objects, "Deployment", "StatefulSet")}


def services(objects):
    return {o["metadata"]["name"]: o["spec"] for o in of_kind(objects, "Service")}


def pods(objects):
    """{name: labels} of the pods of all StatefulSets, as Kubernetes labels them."""
    out = {}
    for stateful_set in of_kind(objects, "StatefulSet"):
        for ordinal in range(stateful_set["spec"]["replicas"]):
            name = f"{stateful_set['metadata']['name']}-{ordinal}"
            out[name] = {**stateful_set["spec"]["template"]["metadata"]["labels"],
                         "statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": str(ordinal)}
    return out


def selected(selector, pods_by_name):
    return sorted(name for name, labels in pods_by_name.items() if selector.items() <= labels.items())


class Manifests:
    """What holds for each folder that is applied as a whole."""

    folder = ""

    @classmethod
    def setUpClass(cls):
        cls.objects = harness.render_manifests(cls.folder)
        cls.config = yaml.safe_load(harness.config_map_file(cls.objects))

    def test_every_object_passes_the_strict_schema(self):
        self.assertGreaterEqual(len(self.objects), 8)
        for obj in self.objects:
            with self.subTest(kind=obj["kind"], name=obj["metadata"]["name"]):
                kubernetes_validate.validate(obj, "1.30", strict=True)

    def test_one_workload_per_role(self):
        self.assertEqual(sorted(workloads(self.objects)), sorted(ROLES))

    def test_one_config_map_is_mounted_by_every_role(self):
        maps = [o["metadata"]["name"] for o in of_kind(self.objects, "ConfigMap")]
        self.assertEqual(len(maps), 1)
        for role, workload in workloads(self.objects).items():
            volumes = {v["name"]: v for v in workload["spec"]["template"]["spec"]["volumes"]}
            self.assertEqual(volumes["config"]["configMap"]["name"], maps[0], role)

    def test_the_binary_accepts_the_file_and_the_variables_of_every_role(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(harness.config_map_file(self.objects))
            file.flush()
            for role, workload in workloads(self.objects).items():
                done = subprocess.run([harness.baton(), role, f"--config={file.name}", "--print-config"],
                                      env={**os.environ, **harness.environment_of(workload)},
                                      capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, role + ": " + done.stderr)

    def test_probes_name_ports_that_exist_and_drain_fits_the_grace_period(self):
        drain_s = self.config["drain"]["timeout_ms"] / 1000
        for role, workload in workloads(self.objects).items():
            spec = workload["spec"]["template"]["spec"]
            container = harness.container_of(workload)
            ports = {key for p in container["ports"] for key in (p["containerPort"], p["name"])}
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                (probe,) = {"grpc", "httpGet"} & container[name].keys()
                self.assertIn(container[name][probe]["port"], ports, f"{role} {name}")
            pause_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
            self.assertLess(pause_s + drain_s, spec["terminationGracePeriodSeconds"], role)
            self.assertTrue(spec["securityContext"]["runAsNonRoot"], role)

    def test_services_reach_the_ports_that_the_config_file_listens_on(self):
        listening = {"router": self.config["server"]["grpc_address"], "prefill": self.config["prefill"]["address"],
                     "decode": self.config["decode"]["address"]}
        for obj in of_kind(self.objects, "Service"):
            role = role_of(obj)
            grpc = next(p["port"] for p in obj["spec"]["ports"] if p["name"] == "grpc")
            self.assertEqual(listening[role].rsplit(":", 1)[1], str(grpc), role)
            container = harness.container_of(workloads(self.objects)[role])
            named = {p["name"]: p["containerPort"] for p in container["ports"]}
            for port in obj["spec"]["ports"]:
                self.assertEqual(named[port["targetPort"]], port["port"], obj["metadata"]["name"])

    def called_by_the_router(self, role, objects):
        """The pods behind the one name by which a router finds the workers of a role."""
        (entry,) = self.config["router"][f"{role}_workers"]
        scheme, name, port = entry.split(":")
        self.assertEqual(scheme, "dns", role)
        service = services(objects)[name]
        self.assertEqual(service["clusterIP"], "None", role)  # the name has every pod's address
        # As soon as there is a pod: the router asks it itself whether it is ready.
        self.assertTrue(service["publishNotReadyAddresses"], role)
        self.assertEqual(port, str(next(p["port"] for p in service["ports"] if p["name"] == "grpc")), role)
        return selected(service["selector"], pods(objects))


class BaseTest(Manifests, unittest.TestCase):
    folder = "base"

    def test_schema_check_notices_a_misspelled_field(self):
        broken = yaml.safe_load(yaml.safe_dump(self.objects[-1]))
        broken["spec"]["replicsa"] = 1
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.30", strict=True)

    def test_one_service_per_role(self):
        self.assertEqual(sorted(services(self.objects)), sorted(f"baton-{r}" for r in ROLES))

    def test_the_router_finds_every_worker(self):
        for role in ("prefill", "decode"):
            self.assertEqual(self.called_by_the_router(role, self.objects), [f"baton-{role}-0"])


class GroupsTest(Manifests, unittest.TestCase):
    folder = "groups"

    def test_the_router_finds_prefill_leaders_and_all_decode_ranks(self):
        self.assertEqual(self.called_by_the_router("prefill", self.objects), ["baton-prefill-a-0"])
        self.assertEqual(self.called_by_the_router("decode", self.objects), [f"baton-decode-a-{i}" for i in range(4)])

    def test_a_group_has_a_pod_for_each_rank_and_an_address_for_each_pod(self):
        for obj in of_kind(self.objects, "StatefulSet"):
            role, spec, name = role_of(obj), obj["spec"], obj["metadata"]["name"]
            with self.subTest(group=name):
                self.assertEqual(spec["replicas"], self.config[role]["ranks"])
                # Ranks wait for each other, so none may wait for another one to be ready.
                self.assertEqual(spec["podManagementPolicy"], "Parallel")
                self.assertEqual(spec["updateStrategy"], {"type": "OnDelete"})
                own = [f"{name}-{i}" for i in range(spec["replicas"])]
                service = services(self.objects)[spec["serviceName"]]
                self.assertEqual(service["clusterIP"], "None")
                self.assertTrue(service["publishNotReadyAddresses"])  # they meet before they are ready
                self.assertEqual(selected(service["selector"], pods(self.objects)), own)
                addresses = harness.environment_of(obj)[f"BATON_{role.upper()}_GROUP_ADDRESSES"].split(",")
                port = next(p["containerPort"] for p in harness.container_of(obj)["ports"] if p["name"] == "group")
                self.assertEqual(addresses, [f"{pod}.{spec['serviceName']}:{port}" for pod in own])

    def test_probes_of_pods_that_may_have_no_grpc_port_go_to_http(self):
        for obj in of_kind(self.objects, "StatefulSet"):
            container = harness.container_of(obj)
            paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")]
            self.assertEqual(paths, ["/health", "/health", "/ready"])

    def test_a_decode_group_can_lose_a_pod_and_only_one_may_be_taken(self):
        model = json.loads((harness.source() / "models/demo/config.json").read_text())
        decode = self.config["decode"]
        self.assertTrue(decode["rebalance"]["survive_rank_loss"])
        self.assertGreaterEqual(decode["redundant_experts"], model["n_routed_experts"])
        guarded = []
        for budget in of_kind(self.objects, "PodDisruptionBudget"):
            self.assertEqual(budget["spec"]["maxUnavailable"], 1)
            guarded += selected(budget["spec"]["selector"]["matchLabels"], pods(self.objects))
        self.assertEqual(sorted(guarded), sorted(pods(self.objects)))

    def test_pods_are_placed_by_where_those_of_their_own_group_are(self):
        for obj in of_kind(self.objects, "StatefulSet"):
            spec = obj["spec"]["template"]["spec"]
            terms = spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
            placed_by = [t["podAffinityTerm"]["labelSelector"] for t in terms]
            placed_by += [c["labelSelector"] for c in spec.get("topologySpreadConstraints", [])]
            for selector in placed_by:
                self.assertEqual(selector, obj["spec"]["selector"], obj["metadata"]["name"])

    def test_a_second_group_is_a_copy_of_the_folder_with_another_letter(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder).resolve() / "kubernetes"
            shutil.copytree(harness.source() / "deploy/kubernetes", copy)
            for role in ("prefill", "decode"):
                added = copy / f"groups/{role}-b"
                shutil.copytree(copy / f"groups/{role}-a", added)
                text = (added / "kustomization.yaml").read_text()
                (added / "kustomization.yaml").write_text(text.replace("-a\n", "-b\n"))
            top = copy / "groups/kustomization.yaml"
            top.write_text(top.read_text().replace("  - decode-a\n", "  - decode-a\n  - prefill-b\n  - decode-b\n"))
            objects = harness.render_manifests(copy / "groups")
        names = [(o["kind"], o["metadata"]["name"]) for o in objects]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(self.called_by_the_router("prefill", objects), ["baton-prefill-a-0", "baton-prefill-b-0"])
        self.assertEqual(len(self.called_by_the_router("decode", objects)), 8)
        for obj in of_kind(objects, "StatefulSet"):
            name = obj["metadata"]["name"]
            self.assertEqual(harness.environment_of(obj)["GROUP"], name)
            self.assertEqual(obj["spec"]["serviceName"], name)
            self.assertEqual(len(selected(services(objects)[name]["selector"], pods(objects))), obj["spec"]["replicas"])


class DockerfileTest(unittest.TestCase):
    def test_runtime_stage_installs_every_library_the_binary_links(self):
        text = (harness.source() / "deploy/docker/Dockerfile").read_text()
        block = re.search(r"# runtime-packages: begin\n(.*)# runtime-packages: end", text, re.S).group(1)
        wanted = re.findall(r"^ +([a-z0-9][a-z0-9.+-]+) \\$", block, re.M)
        self.assertGreater(len(wanted), 5)
        libraries = subprocess.run(["ldd", harness.baton()], check=True, capture_output=True, text=True).stdout
        paths = re.findall(r"=> (/\S+)", libraries)
        # Nobody ships a build with sanitizers; their runtimes are not the image's business.
        owners = self.owners([p for p in paths if not re.search(r"/lib[alt]san|/libubsan", p)])
        self.assertGreater(len(owners), 5)
        missing = set(owners) - set(wanted) - self.dependencies(wanted)
        self.assertFalse(missing, f"add these to the runtime stage: {missing}")

    def test_cuda_stage_has_the_libraries_that_the_backend_opens(self):
        text = (harness.source() / "deploy/docker/Dockerfile").read_text()
        opened = [name for file in ("kernels/cuda/native/cublaslt_library.cc", "transport/nccl/native/nccl_library.cc")
                  for name in re.findall(r'"(lib\w+\.so\.\d+)"', (harness.source() / file).read_text())]  # fmt: skip
        self.assertEqual(len(opened), 2)
        for name in opened:
            self.assertIn(f"/{name}", text)

    @staticmethod
    def owners(paths):
        """The Debian packages of shared libraries; usr-merge makes dpkg know only one of the two spellings."""
        spellings = [s for p in paths for s in (p, p.removeprefix("/usr"), "/usr" + p)]
        found = subprocess.run(["dpkg", "-S", *spellings], capture_output=True, text=True).stdout
        return sorted({line.split(":")[0] for line in found.splitlines()})

    @staticmethod
    def dependencies(packages):
        """Everything that apt would bring along, from the package database of this machine."""
        shown = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Depends}\\n"], check=True,
                               capture_output=True, text=True).stdout
        depends = {line.split(" ")[0]: re.findall(r"(?: |, |\| )([a-z0-9][a-z0-9.+-]+)", line)
                   for line in shown.splitlines()}
        seen, todo = set(), list(packages)
        while todo:
            for name in depends.get(todo.pop(), []):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        return seen


if __name__ == "__main__":
    harness.main()
