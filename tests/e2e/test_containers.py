"""The containers of docker/ in a real engine: they run the app, and no server holds a client's key.

Without an engine these tests are skipped. DOCKER_HOST names one; as root one is started if dockerd
is installed.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess

import pytest

from .docker_engine import NoEngineError, docker_engine
from .federation_processes import COMPLETED, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SITES = [f"superexec-clientapp-{n}" for n in (1, 2, 3)]
KEYLESS = ["superlink", "superexec-serverapp", *(f"supernode-{n}" for n in (1, 2, 3))]

# Looks at everything a container can: its mounts, its files, its processes' arguments and
# environments. What it looks for comes by stdin, so that it does not find itself. The programs of
# the image are left out: they are older than the key, and no process may write there.
SEARCH = """
import base64, json, os, sys
needles = [base64.b64decode(needle) for needle in json.load(sys.stdin)]
found = []
def look(path):
    try:
        with open(path, "rb") as file:
            tail = b""
            while block := file.read(1 << 24):
                if any(needle in tail + block for needle in needles):
                    found.append(path)
                    return
                tail = block[-256:]
    except OSError:
        return
for folder, names, files in os.walk("/"):
    if folder == "/":
        names[:] = [name for name in names if name not in ("proc", "sys", "dev", "python", "usr")]
    for name in files:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and not os.path.islink(path):
            look(path)
for process in filter(str.isdigit, os.listdir("/proc")):
    look(f"/proc/{process}/environ")
    look(f"/proc/{process}/cmdline")
mounts = open("/proc/self/mountinfo").read().splitlines()
print(json.dumps({"found": found, "mounts": mounts}))
"""


def load_demo_module():
    spec = importlib.util.spec_from_file_location("deploy_demo", ROOT / "docker" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        try:
            with docker_engine() as host:
                if host is not None:
                    patch.setenv("DOCKER_HOST", host)
                yield from run_demo(tmp_path_factory.mktemp("demo") / "run")
        except NoEngineError as reason:
            pytest.skip(str(reason))


def run_demo(folder):
    project = f"fedsens-test-{os.getpid()}"
    demo = load_demo_module().Demo(folder, project)
    demo.build()
    demo.make_secrets()
    try:
        demo.start()
        demo.run("num-server-rounds=1", "local-epochs=1")
        yield demo
    finally:
        demo.stop()
    label = f"label=com.docker.compose.project={project}"
    for kind in ("ps", "volume ls", "network ls"):
        assert demo.docker(*kind.split(), "-q", "--filter", label) == "", kind


def look_inside(demo, service):
    """Search a running container for the clients' secrets: all that its own user can read."""
    key = json.loads((demo.secrets / "federation.key").read_text())
    text = key["key"].encode()
    assert len(base64.b64decode(text)) == 32
    needles = [text, base64.b64decode(text)]
    done = subprocess.run(
        ["docker", "exec", "-i", demo.container(service), "python3", "-c", SEARCH],
        input=json.dumps([base64.b64encode(needle).decode() for needle in needles]),
        env=demo.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_app_runs_to_its_end_and_all_sites_hold_the_opened_model(demo):
    summary = json.loads((demo.folder / "summary.json").read_text())
    assert summary["status"] == COMPLETED
    assert summary["rounds"] == 1
    assert summary["encrypted_parameters"] == int(0.1 * summary["parameters"])
    assert [row["clients"] for row in summary["per_round"]] == [3]
    assert summary["bytes_up"]["encrypted"] > 0
    assert len(demo.open()) == 64  # which compares it with the record of every client


@pytest.mark.parametrize("service", KEYLESS)
def test_no_container_but_the_clients_own_holds_the_key(demo, service):
    inside = look_inside(demo, service)
    assert inside["found"] == []
    assert not [line for line in inside["mounts"] if "federation" in line]
    mounts = json.loads(
        demo.docker("inspect", "--format", "{{json .Mounts}}", demo.container(service))
    )
    assert not [mount for mount in mounts if "federation" in mount["Source"]]


def test_the_search_finds_the_key_where_it_is(demo):
    inside = look_inside(demo, SITES[0])
    assert inside["found"] == ["/run/secrets/federation-key"]
    assert [line for line in inside["mounts"] if "/run/secrets/federation-key" in line]


@pytest.mark.parametrize("service", [*KEYLESS, *SITES])
def test_nothing_runs_as_root_or_with_capabilities(demo, service):
    assert int(demo.inside(service, "id", "-u")) == demo.user != 0
    status = dict(
        line.split(":", 1) for line in demo.inside(service, "cat", "/proc/1/status").splitlines()
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0


def test_a_client_app_reaches_its_supernode_and_nothing_else(demo):
    code = """
import socket
for host, port in (("supernode", 9094), ("superlink", 8000), ("192.0.2.1", 80)):
    try:
        socket.create_connection((host, port), 3).close()
        print(host)
    except OSError:
        pass
"""
    assert demo.inside(SITES[0], "python3", "-c", code).split() == ["supernode"]


def test_a_supernode_with_an_unregistered_key_is_refused(demo):
    demo.in_image("python3", "/opt/fedsens/certificates.py", "stranger", "--supernode", "node-4")
    key = demo.folder / "stranger" / "node-4"
    command = ["run", "--rm", "-v", f"{key}:/run/secrets/stranger:ro", "--entrypoint"]
    command += ["flower-supernode --superlink superlink:8000 --max-retries 1"]
    command += ["supernode-1", "--root-certificates", "/run/secrets/ca-certificate"]
    command += ["--auth-supernode-private-key", "/run/secrets/stranger"]
    done = subprocess.run(
        [*demo.compose_command(), *command],
        env=demo.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Failed to activate SuperNode" in done.stdout + done.stderr
