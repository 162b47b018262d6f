"""The Kubernetes base renders, passes a strict schema check and agrees with itself and with the Dockerfile."""

import re
import subprocess
import unittest

import harness
import kubernetes_validate
import yaml

ROLES = ("router", "prefill", "decode")


def workloads(objects):
    return {o["metadata"]["labels"]["app.kubernetes.io/component"]: o
            for o in objects if o["kind"] in ("Deployment", "StatefulSet")}


class ManifestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.objects = harness.render_manifests()

    def test_every_object_passes_the_strict_schema(self):
        self.assertGreaterEqual(len(self.objects), 8)
        for obj in self.objects:
            with self.subTest(kind=obj["kind"], name=obj["metadata"]["name"]):
                kubernetes_validate.validate(obj, "1.30", strict=True)

    def test_schema_check_notices_a_misspelled_field(self):
        broken = yaml.safe_load(yaml.safe_dump(self.objects[-1]))
        broken["spec"]["replicsa"] = 1
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.30", strict=True)

    def test_one_workload_and_one_service_per_role(self):
        self.assertEqual(sorted(workloads(self.objects)), sorted(ROLES))
        services = [o["metadata"]["name"] for o in self.objects if o["kind"] == "Service"]
        self.assertEqual(sorted(services), sorted(f"baton-{r}" for r in ROLES))

    def test_one_config_map_is_mounted_by_every_role(self):
        maps = [o["metadata"]["name"] for o in self.objects if o["kind"] == "ConfigMap"]
        self.assertEqual(len(maps), 1)
        for role, workload in workloads(self.objects).items():
            volumes = {v["name"]: v for v in workload["spec"]["template"]["spec"]["volumes"]}
            self.assertEqual(volumes["config"]["configMap"]["name"], maps[0], role)

    def test_probes_name_ports_that_exist_and_drain_fits_the_grace_period(self):
        config = harness.config_map_file(self.objects)
        drain_s = yaml.safe_load(config)["drain"]["timeout_ms"] / 1000
        for role, workload in workloads(self.objects).items():
            spec = workload["spec"]["template"]["spec"]
            container = spec["containers"][0]
            ports = {p["containerPort"] for p in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                self.assertIn(container[probe]["grpc"]["port"], ports, f"{role} {probe}")
            pause_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
            self.assertLess(pause_s + drain_s, spec["terminationGracePeriodSeconds"], role)
            self.assertTrue(spec["securityContext"]["runAsNonRoot"], role)

    def test_services_reach_the_ports_that_the_config_file_listens_on(self):
        config = yaml.safe_load(harness.config_map_file(self.objects))
        listening = {"router": config["server"]["grpc_address"], "prefill": config["prefill"]["address"],
                     "decode": config["decode"]["address"]}
        for obj in self.objects:
            if obj["kind"] != "Service":
                continue
            role = obj["metadata"]["labels"]["app.kubernetes.io/component"]
            grpc = next(p["port"] for p in obj["spec"]["ports"] if p["name"] == "grpc")
            self.assertEqual(listening[role].rsplit(":", 1)[1], str(grpc), role)

    def test_the_router_finds_workers_by_the_names_of_headless_services(self):
        config = yaml.safe_load(harness.config_map_file(self.objects))
        services = {o["metadata"]["name"]: o["spec"] for o in self.objects if o["kind"] == "Service"}
        for role in ("prefill", "decode"):
            (entry,) = config["router"][f"{role}_workers"]
            scheme, name, port = entry.split(":")
            self.assertEqual(scheme, "dns", role)
            self.assertEqual(services[name]["clusterIP"], "None", role)  # the name has every pod's address
            # As soon as there is a pod: the router asks it itself whether it is ready.
            self.assertTrue(services[name]["publishNotReadyAddresses"], role)
            self.assertEqual(port, str(next(p["port"] for p in services[name]["ports"] if p["name"] == "grpc")), role)
            self.assertEqual(services[name]["selector"]["app.kubernetes.io/component"], role)


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
