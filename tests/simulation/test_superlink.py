"""What a simulation's SuperLink needs of this machine, without starting one."""

import os
import socket
from pathlib import Path

import pytest

from fedsens.errors import SimulationError
from fedsens.simulation._superlink import flower_environment, free_port, program


def test_a_missing_program_is_named():
    with pytest.raises(SimulationError, match="no-such-program"):
        program("no-such-program")


def test_commands_are_those_beside_this_python(tmp_path):
    found = Path(program("flwr"))
    first = flower_environment(tmp_path)["PATH"].split(os.pathsep)[0]
    assert str(found.parent) == first
    assert found.exists()


def test_a_free_port_can_be_listened_on():
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
