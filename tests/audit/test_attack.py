"""The attacker's view is what a captured message holds, and nothing else."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedsens.audit._attack import view_of_gradient, view_of_update
from fedsens.flower import LocalGrid
from fedsens.flower._records import model_key, to_arrays
from tests.flower.federation import Run, arrays_of, build_model, data_of, is_reply, make_app

RATE = 0.1


def one_step(message, context):
    model = build_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = data_of(context)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    content = RecordDict({
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(y)}),
    })
    return Message(content, reply_to=message)


def test_a_captured_update_gives_the_gradient_where_it_is_visible(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSENS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("FEDSENS_MIN_CONTRIBUTORS", "2")
    captured = []

    def tap(message):
        if is_reply(message) and message.metadata.src_node_id == 1000:
            captured.append(message.content)

    grid = LocalGrid(make_app(one_step), 2, tap=tap)
    run = Run(grid=grid, rounds=1, ratio=0.4, policy="random")
    content = captured[0]
    plain = to_arrays(content[model_key(content)])
    model, mask, layout = build_model(), run.strategy.model.mask, run.strategy.model.layout
    sent = arrays_of(ArrayRecord(model.state_dict()))
    view = view_of_update(
        model, sent, plain, mask, layout, step=RATE, shape=(1, 2, 3), classes=3, batch=20
    )
    x, y = data_of(grid.nodes[1000])
    model = build_model()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    true = {name: parameter.grad for name, parameter in model.named_parameters()}
    whole = view_of_gradient(model, true, mask, layout, (1, 2, 3), 3, 20)
    assert view.gradients.keys() == whole.gradients.keys() == true.keys()
    hidden = 0
    for entry in layout.entries:
        if entry.name not in true:
            continue  # a buffer is not trained
        selected = torch.from_numpy(np.array(mask.of(entry)))
        for seen in (view.gradients[entry.name], whole.gradients[entry.name]):
            assert torch.equal(seen.isnan(), selected)
            assert torch.allclose(seen[~selected], true[entry.name][~selected], atol=1e-5)
        hidden += int(selected.sum())
    assert 0 < hidden <= mask.k
    assert [p.shape for p in view.parameters] == [g.shape for g in view.gradients.values()]


def test_a_frozen_parameter_is_not_part_of_the_view():
    model = build_model()
    model[0].weight.requires_grad_(False)
    state = arrays_of(ArrayRecord(model.state_dict()))
    from fedsens import EncryptionMask, ParameterLayout

    layout = ParameterLayout.from_state_dict(model.state_dict())
    mask = EncryptionMask(np.zeros(layout.size, bool), layout.digest)
    view = view_of_update(
        model, state, state, mask, layout, step=1, shape=(1, 2, 3), classes=3, batch=1
    )
    assert "0.weight" not in view.gradients
    assert all((gradient == 0).all() for gradient in view.gradients.values())


@pytest.mark.parametrize("steps", [2, 5])
def test_several_steps_give_their_mean_gradient(steps):
    from fedsens import EncryptionMask, ParameterLayout

    model = torch.nn.Linear(3, 2)
    layout = ParameterLayout.from_state_dict(model.state_dict())
    mask = EncryptionMask(np.zeros(layout.size, bool), layout.digest)
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    after = {name: value - RATE * steps * 0.5 for name, value in before.items()}
    view = view_of_update(
        model,
        before,
        after,
        mask,
        layout,
        step=RATE * steps,
        shape=(1, 1, 3),
        classes=2,
        batch=steps,
    )
    assert all(torch.allclose(g, torch.tensor(0.5)) for g in view.gradients.values())
