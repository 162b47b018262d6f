"""Every expression of the dashboard and of the rules, evaluated by a real Prometheus that scrapes a live `baton serve`
with groups of ranks under load, returns data; and every series they name is one that Baton has."""

import contextlib
import json
import math
import pathlib
import re
import subprocess
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

import harness
import yaml

SCRAPE_S = 1
LOAD_LIMIT_S = 180  # a sanitized server on a busy machine needs much of it, others a few seconds
STREAMS = 3
# Groups, so that there are experts to show; what they do by the minute in production they do by the second here.
GROUPS = ["--prefill.ranks=2", "--decode.ranks=2", "--decode.redundant_experts=16",
          "--decode.rebalance.interval_ms=1000", "--decode.rebalance.min_gain=0"]


def dashboard():
    return json.loads((harness.source() / "deploy/grafana/baton.json").read_text())


def rules():
    groups = yaml.safe_load((harness.source() / "deploy/prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panel_expressions():
    """(panel, expression) with Grafana's variables put in as Grafana would with everything selected."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "10m")
            yield panel["title"], expression.replace("$job", ".*").replace("$instance", ".*")


class DashboardFileTest(unittest.TestCase):
    def test_every_panel_uses_the_datasource_variable_and_says_what_it_shows(self):
        data = dashboard()
        variables = {v["name"] for v in data["templating"]["list"]}
        self.assertLessEqual({"datasource", "job", "instance"}, variables)
        for panel in data["panels"]:
            if panel["type"] == "row":
                continue
            self.assertEqual(panel["datasource"]["uid"], "${datasource}", panel["title"])
            self.assertTrue(panel["description"], panel["title"])
            self.assertTrue(panel["targets"], panel["title"])
            for target in panel["targets"]:
                for window in re.findall(r"\[([^\]]+)\]", target["expr"]):
                    self.assertEqual(window, "$__rate_interval", panel["title"])

    def test_panels_do_not_overlap(self):
        taken = {}
        for panel in dashboard()["panels"]:
            pos = panel["gridPos"]
            self.assertLessEqual(pos["x"] + pos["w"], 24, panel["title"])
            for x in range(pos["x"], pos["x"] + pos["w"]):
                for y in range(pos["y"], pos["y"] + pos["h"]):
                    self.assertNotIn((x, y), taken, f"{panel['title']} over {taken.get((x, y))}")
                    taken[x, y] = panel["title"]

    def test_rules_and_scrape_configuration_pass_promtool_and_alerts_fire_when_they_should(self):
        folder = harness.source() / "deploy/prometheus"
        for arguments in (["check", "rules", folder / "rules.yml"], ["check", "config", folder / "prometheus.yml"],
                          ["test", "rules", harness.source() / "tests/deploy/alerts.yml"]):
            done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_test(self):
        tests = yaml.safe_load((harness.source() / "tests/deploy/alerts.yml").read_text())["tests"]
        tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
        self.assertEqual({rule["alert"] for rule in rules() if "alert" in rule}, tested)

    def test_kubernetes_scrape_configuration_passes_promtool(self):
        # Debian's Prometheus is built without Kubernetes discovery: the rest is checked with a static target instead.
        folder = harness.source() / "deploy/prometheus"
        config = yaml.safe_load((folder / "prometheus-kubernetes.yml").read_text())
        job = config["scrape_configs"][0]
        self.assertEqual(job.pop("kubernetes_sd_configs"), [{"role": "pod"}])
        job["static_configs"] = [{"targets": ["localhost:8080"]}]
        config["rule_files"] = [str(folder / "rules.yml")]
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as out:
            yaml.safe_dump(config, out)
            out.flush()
            done = subprocess.run(["promtool", "check", "config", out.name], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class LiveTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        ports_file, log = cls.dir / "ports", cls.dir / "baton.log"
        server = cls.enterClassContext(harness.process(
            [harness.baton(), "serve", "--server.grpc_address=127.0.0.1:0", "--server.http_address=127.0.0.1:0",
             f"--port-file={ports_file}", *GROUPS], log))
        harness.wait_until(ports_file.exists, "baton serve", log, server)
        cls.ports = dict(line.split("=") for line in ports_file.read_text().split())
        cls.start_prometheus()
        cls.load()

    @classmethod
    def start_prometheus(cls):
        config = yaml.safe_load((harness.source() / "deploy/prometheus/prometheus.yml").read_text())
        config["global"]["scrape_interval"] = f"{SCRAPE_S}s"
        config["rule_files"] = []
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{cls.ports['http']}"]
        path, log = cls.dir / "prometheus.yml", cls.dir / "prometheus.log"
        path.write_text(yaml.safe_dump(config))
        cls.prometheus = f"http://127.0.0.1:{(port := harness.free_port())}"
        child = cls.enterClassContext(harness.process(
            ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={cls.dir / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"], log))
        harness.wait_until(lambda: harness.http_ok(cls.prometheus + "/-/ready"), "Prometheus", log, child)

    @classmethod
    def load(cls):
        """A few streams at once, again and again until every rate has samples."""
        command = [harness.baton(), "complete", "--server", f"127.0.0.1:{cls.ports['grpc']}", "--max-tokens", "48"]
        end = time.monotonic() + LOAD_LIMIT_S
        expressions = [expression for _, expression in panel_expressions()]
        while time.monotonic() < end and not all(map(cls.has_numbers, expressions)):
            with contextlib.ExitStack() as streams:
                logs = [cls.dir / f"stream-{i}.log" for i in range(STREAMS)]
                children = [streams.enter_context(harness.process([*command, "The command"], log)) for log in logs]
                for child, log in zip(children, logs):
                    if child.wait(timeout=60) != 0:
                        raise AssertionError(log.read_text(errors="replace"))

    @classmethod
    def has_numbers(cls, expression):
        return any(math.isfinite(float(series["value"][1])) for series in cls.query(expression))

    @classmethod
    def query(cls, expression):
        url = cls.prometheus + "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]["result"]

    def test_every_panel_has_data(self):
        checked = 0
        for title, expression in panel_expressions():
            with self.subTest(panel=title, expression=expression):
                result = self.query(expression)
                self.assertTrue(result, "no data")
                values = [float(series["value"][1]) for series in result]
                self.assertTrue(any(math.isfinite(v) for v in values), f"not one number: {values}")
                checked += 1
        self.assertGreater(checked, 30)

    def test_every_rule_names_series_that_exist(self):
        for rule in rules():
            for name in set(re.findall(r"baton_[a-z0-9_]+", rule["expr"])):
                with self.subTest(rule=rule.get("alert", rule.get("record")), series=name):
                    self.assertTrue(self.query(name), "no such series")

    def test_stages_add_up_to_the_time_to_first_token(self):
        stages = float(self.query("sum(baton_ttft_stage_seconds_sum)")[0]["value"][1])
        whole = float(self.query("sum(baton_ttft_seconds_sum)")[0]["value"][1])
        self.assertGreater(whole, 0)
        self.assertAlmostEqual(stages / whole, 1.0, places=6)


if __name__ == "__main__":
    harness.main()
