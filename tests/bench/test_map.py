import torch

from fedsens.bench.map import bench_map


def test_rows_are_sane():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    rows = bench_map(samples=8, repeats=1, classes=3, literal_elements=2)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    methods = [row["method"] for row in rows]
    assert len(set(methods)) == len(methods) == 7
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert all(row["ms_per_sample"] > 0 and row["steps"] > 0 for row in rows)
    by_method = dict(zip(methods, rows, strict=True))
    step = by_method["training step"]
    assert step["steps"] == 1
    assert step["vs_torch_func"] is None
    assert [row["method"] for row in rows if row["extrapolated"]] == ["literal double backward"]
    literal = by_method["literal double backward"]
    assert literal["ms_per_sample"] > by_method["sensitivity_map vector, exact"]["ms_per_sample"]
    assert by_method["torch.func vmap(grad), best chunk"]["vs_torch_func"] == 1
