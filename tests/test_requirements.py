"""What is said of a lab before it is loaded, against what it takes when it is."""

import contextlib
import itertools
import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_lab
from huggingface_hub import constants
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.sparsification import MaskSettings
from course_utils.circuits.splice import SplicedModel
from course_utils.labs import hub, memory, requirements
from course_utils.labs.catalog import LABS, LabError
from course_utils.labs.lab import load_lab
from course_utils.labs.memory import FreeMemory, free_memory
from course_utils.labs.requirements import (
    PROCESS_GB,
    PROMPTS,
    TOKENS,
    estimate,
    fast_dtype,
    has_bfloat16,
    matrix_rate,
    numbers_per_token,
    require_machine,
    requirements_of,
    table,
    usual_dtype,
    without_emulation,
)
from course_utils.prompts.tasks import load_task


@pytest.mark.parametrize("name", LABS)
def test_every_lab_says_what_it_needs(name):
    needs = estimate(name, device="cpu", dtype=torch.bfloat16)
    assert needs.memory > needs.weights > 0 and needs.saes > 0 and needs.gflop_per_step > 0
    assert name in str(needs) and "to fetch" in str(needs)


def test_the_posts_setting_fits_a_gpu_of_24_gb_and_its_weights_are_18_5():
    needs = estimate("gemma-2-9b")
    assert needs.dtype == torch.bfloat16
    assert needs.weights == pytest.approx(18.48, abs=0.01)
    assert needs.saes == pytest.approx(4 * 2 * 2 * 16384 * 3584 / 1e9)
    assert 18.5 < needs.memory < 23


@pytest.mark.weights
def test_a_loaded_lab_says_the_same_as_before():
    lab = load_lab("smollm2", layers=[5, 11])
    before, after = estimate("smollm2", layers=[5, 11]), lab.estimate()
    assert replace(before, download=0.0) == after
    assert before.download == pytest.approx(0.098, abs=0.001) and before.missing == 0
    assert before.weights == pytest.approx(
        sum(p.numel() * p.element_size() for p in lab.hf_model.parameters()) / 1e9
    )


@pytest.mark.weights
def test_the_work_of_a_mask_step_is_what_is_counted():
    """Within a quarter of a count of the matrix products of a real step."""
    lab = load_lab("smollm2", layers=[5, 11, 17, 23, 29])
    task = load_task("ioi", lab.tokenizer, n=16, verbose=False)
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)

    def count(steps):
        with FlopCounterMode(display=False) as counter:
            learn_masks(
                spliced, task, means=means, settings=MaskSettings(steps=steps), progress=False
            )
        return counter.get_total_flops()

    counted = (count(2) - count(1)) / 1e9
    estimated = lab.estimate(prompts=16, tokens=task.seq_len - 1)
    assert estimated.gflop_per_step == pytest.approx(counted, rel=0.25)


def test_a_step_is_estimated_for_the_works_own_sizes(monkeypatch):
    """Notebook 06 learns on 4 prompts of 38 tokens, not on 16 of 24."""
    usual, own = estimate("qwen-coder"), estimate("qwen-coder", prompts=4, tokens=38)
    share = 4 * 38 / (PROMPTS * TOKENS)
    assert own.gflop_per_step == pytest.approx(share * usual.gflop_per_step)
    assert own.step == pytest.approx(share * usual.step)
    assert own.memory == pytest.approx(usual.memory - (1 - share) * usual.step)
    assert "4 prompts of 38 tokens" in str(own) and "16 prompts of 24 tokens" in str(usual)
    monkeypatch.setattr(requirements, "matrix_rate", lambda dtype, device: 100.0)
    assert own.seconds(40) == pytest.approx(40 * own.gflop_per_step / 50)
    lab = make_lab()
    assert lab.estimate(prompts=2, tokens=5).step * 5 == pytest.approx(
        lab.estimate(prompts=5, tokens=10).step
    )
    with pytest.raises(ValueError, match="0 prompts of 24 tokens"):
        estimate("smollm2", prompts=0)


def test_notebook_06_fits_colab_and_the_estimate_says_so_without_weights():
    """Colab has 12.7 GB. A step on 4 prompts of 38 tokens was measured with 8.5 GB at the peak."""
    needs = estimate("qwen-coder", dtype=torch.float32, prompts=4, tokens=38)
    assert needs.memory + PROCESS_GB == pytest.approx(8.5, rel=0.1)


def test_a_lab_of_ones_own_says_what_it_needs_too():
    lab = make_lab("gemma3")
    needs = lab.estimate()
    assert needs.parameters == sum(p.numel() for p in lab.hf_model.parameters())
    assert needs.download == 0 and not needs.gpu


def test_more_layers_after_the_first_sae_are_more_work():
    model = make_lab().hf_model
    early, late = (
        requirements_of("x", model, {layer: 24}, torch.float32).gflop_per_step for layer in (0, 2)
    )
    assert early > 2 * late


def test_the_readme_shows_what_is_estimated():
    """If this fails: paste what `python -m course_utils.labs.requirements` prints."""
    assert table() in (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_an_unknown_lab_is_refused():
    with pytest.raises(LabError, match="unknown lab"):
        estimate("gpt5")


def test_tied_embeddings_count_once_and_are_no_work():
    model = make_lab("llama").hf_model  # tied
    body = sum(p.numel() for p in model.model.layers.parameters()) + model.model.norm.weight.numel()
    needs = requirements_of("x", model, {3: 24}, torch.float32)
    d_model = model.config.hidden_size
    assert needs.gflop_per_step == pytest.approx(PROMPTS * TOKENS * 2 * 24 * d_model / 1e9)
    first = requirements_of("x", model, {-1: 0}, torch.float32)  # all layers, and no SAE
    assert first.gflop_per_step == pytest.approx(PROMPTS * TOKENS * 4 * body / 1e9)


def test_what_is_on_the_machine_is_not_missing(monkeypatch):
    monkeypatch.setattr(hub, "local_model", lambda repo: Path("/here"))
    monkeypatch.setattr(hub, "has_file", lambda repo, file: "layer_13" in file)
    needs = estimate("gemma-2-2b", dtype=torch.float32)
    sae = 2 * 4 * 16_384 * 2_304 / 1e9
    assert needs.missing == pytest.approx(3 * sae)
    assert needs.download == pytest.approx(4 * sae + 2 * needs.parameters / 1e9)


def test_the_time_of_a_step_follows_from_half_of_the_machines_rate(monkeypatch):
    monkeypatch.setattr(requirements, "matrix_rate", lambda dtype, device: 100.0)
    needs = estimate("smollm2")
    assert needs.seconds_per_step("cpu") == pytest.approx(needs.gflop_per_step / 50)


# ---------------------------------------------------------------------------------------------
# This machine
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "offload", "fits"), [(9, False, False), (9, True, True), (99, False, True)]
)
def test_a_gpu_has_the_memory_or_may_leave_layers_in_main_memory(monkeypatch, free, offload, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 1e9, 0))
    needs = estimate("gemma-2-2b", dtype=torch.bfloat16)
    here = dict(folder=Path("."), may_offload=offload)
    if fits:
        require_machine(replace(needs, missing=0.0, weights=10.0), "cuda", **here)
        return
    with pytest.raises(LabError, match="and cuda has 9.0 GB free. Layers that do not fit can wait"):
        require_machine(replace(needs, missing=0.0, weights=10.0), "cuda", **here)


@pytest.mark.parametrize("limit", ["this machine", "a batch job"])
def test_a_processor_needs_room_for_python_too(monkeypatch, limit):
    needs = replace(estimate("smollm2"), missing=0.0, weights=2.0, saes=0.0, step=0.0)
    says = "needs 3.5 GB.*3.4 GB free"
    if limit != "this machine":
        says += f".*What limits it is {limit}: ask for more"
    for free, fits in ((2 + PROCESS_GB - 0.1, False), (2 + PROCESS_GB + 0.1, True)):
        here = FreeMemory(int(free * 1e9), limit)
        monkeypatch.setattr(requirements, "free_memory", lambda here=here: here)
        with contextlib.nullcontext() if fits else pytest.raises(LabError, match=says):
            require_machine(needs, "cpu", folder=Path("."))


@pytest.fixture
def empty_caches(tmp_path, monkeypatch):
    """Nothing was fetched yet."""
    monkeypatch.setenv("SAE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_the_converted_copy_is_written_too(empty_caches, monkeypatch):
    needs = estimate("qwen-coder", device="cpu", dtype=torch.float32)
    assert needs.missing == pytest.approx(1.117, abs=0.001)
    assert needs.to_write == pytest.approx(needs.missing + 2 * needs.parameters / 1e9)
    cache = empty_caches / "cache"
    cache.mkdir()
    (cache / LABS["qwen-coder"].model.name).touch()  # fetched, and not converted
    fetched = estimate("qwen-coder", device="cpu", dtype=torch.float32)
    assert (fetched.missing, fetched.to_write) == (0, 2 * needs.parameters / 1e9)
    monkeypatch.setattr(requirements, "is_converted", lambda weights: True)
    assert estimate("qwen-coder", device="cpu", dtype=torch.float32).to_write == 0


def test_a_model_from_the_hub_is_not_converted(empty_caches):
    needs = estimate("gpt2-small")
    assert needs.to_write == needs.missing == needs.download > 0


def nothing_may_be_loaded(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("course_utils.labs.lab.load_model", load)
    here = FreeMemory(10**12, "this machine")
    monkeypatch.setattr(requirements, "free_memory", lambda: here)


def test_too_little_room_for_the_copy_is_told_before_the_download(empty_caches, monkeypatch):
    """1.1 GB would fit."""
    nothing_may_be_loaded(monkeypatch)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3e9))
    says = r"1\.1 GB to fetch and 3\.1 GB to write as a converted copy, and .* has 3\.0 GB left"
    with pytest.raises(LabError, match=f"{says}.*export SAE_CIRCUITS_CACHE="):
        load_lab("qwen-coder", device="cpu")


@pytest.mark.parametrize(
    ("name", "variable"), [("smollm2", "SAE_CIRCUITS_CACHE"), ("gpt2-small", "HF_HOME")]
)
def test_a_cache_that_cannot_be_written_to_is_told_before_the_download(
    empty_caches, monkeypatch, name, variable
):
    nothing_may_be_loaded(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(LabError, match=f"may not be written to.*export {variable}="):
            load_lab(name, device="cpu")
    for folder in ("cache", "hub"):
        (empty_caches / folder).touch()
    with pytest.raises(LabError, match=f"is a file, and a folder is wanted.*export {variable}="):
        load_lab(name, device="cpu")


def test_a_complete_cache_need_not_be_written_to(monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr(requirements, "free_memory", lambda: FreeMemory(10**12, "this machine"))
    needs = replace(estimate("smollm2"), missing=0.0, to_write=0.0)
    folder = Path("/no/such/folder")
    assert require_machine(needs, "cpu", folder=folder) is None
    with pytest.raises(LabError, match="may not be written to"):
        require_machine(replace(needs, missing=1e9, to_write=1e9), "cpu", folder=folder)


# ---------------------------------------------------------------------------------------------
# Limits on main memory
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 100 bytes free, no groups and no limit; the tests add some."""
    resource = memory.resource
    if resource is None:
        pytest.skip("Windows has no such limits")

    def put(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def free_in_groups(real=memory.free_in_groups):
        return real(tmp_path / "process", tmp_path / "groups")

    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(memory, "free_in_groups", free_in_groups)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    monkeypatch.setattr(resource, "getrlimit", lambda which: unlimited)
    return put


def v1(put, group, limit, used, cached=None):
    put(f"groups/memory/{group}/memory.limit_in_bytes", f"{limit}\n")
    put(f"groups/memory/{group}/memory.usage_in_bytes", f"{used}\n")
    if cached is not None:
        put(f"groups/memory/{group}/memory.stat", f"cache 1\ntotal_inactive_file {cached}\n")


def v2(put, group, limit, used, cached=None):
    put(f"groups/{group}/memory.max", f"{limit}\n")
    put(f"groups/{group}/memory.current", f"{used}\n")
    if cached is not None:
        put(f"groups/{group}/memory.stat", f"anon 5\ninactive_file {cached}\n")


VERSIONS = [
    pytest.param(v1, "12:cpu,cpuacct:/\n4:memory:/slurm/job\n0::/\n", id="version 1"),
    pytest.param(v2, "0::/slurm/job\n", id="version 2"),
]


def test_without_limits_the_machine_is_the_limit(machine):
    assert free_memory() == (100, "this machine")
    machine("process", "4:memory:/gone\n0::/gone\nnonsense\n")
    assert free_memory() == (100, "this machine")


@pytest.mark.parametrize(("group", "process"), VERSIONS)
def test_the_limit_of_a_group_counts_what_is_used_without_cached_files(machine, group, process):
    machine("process", process)
    group(machine, "slurm/job", limit=90, used=30)
    assert free_memory().bytes == 60 and "cgroup" in free_memory().limited_by
    group(machine, "slurm/job", limit=90, used=30, cached=20)
    assert free_memory().bytes == 80
    group(machine, "slurm/job", limit=900, used=30)
    assert free_memory() == (100, "this machine")


@pytest.mark.parametrize(("group", "process"), VERSIONS)
def test_the_limits_of_the_groups_around_it_count_too(machine, group, process):
    machine("process", process)
    group(machine, "slurm/job", limit=90, used=10)
    group(machine, "slurm", limit=50, used=20)
    assert free_memory().bytes == 30
    group(machine, "", limit=40, used=45)
    assert free_memory().bytes == 0


@pytest.mark.parametrize(("group", "process"), VERSIONS)
def test_in_a_container_the_root_is_the_group(machine, group, process):
    """The path is that on the machine outside, and is not to be seen."""
    machine("process", process)
    group(machine, "", limit=70, used=20)
    assert free_memory().bytes == 50


def test_groups_without_a_limit_limit_nothing(machine):
    machine("process", "4:memory:/job\n0::/job\n")
    v2(machine, "job", limit="max", used=20)
    v1(machine, "job", limit=9223372036854771712, used=20)
    assert free_memory() == (100, "this machine")


def test_the_address_space_may_be_the_smallest(machine, monkeypatch):
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=30, rss=1))
    monkeypatch.setattr(memory.psutil, "Process", lambda: process)
    resource = memory.resource
    for soft, left in ((75, 45), (20, 0)):
        limits = {resource.RLIMIT_AS: (soft, resource.RLIM_INFINITY)}
        monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
        assert free_memory() == (left, "the limit on the address space (ulimit -v)")
    monkeypatch.setattr(memory, "resource", None)  # Windows
    assert free_memory() == (100, "this machine")


# ---------------------------------------------------------------------------------------------
# The fast dtype
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopwatch(monkeypatch):
    """A machine whose products take what ``seconds`` says for (dtype, n); the list holds what was
    measured. Nothing is remembered from before, nor kept for later.
    """
    measured = []

    def product_seconds(dtype, device, n):
        measured.append((dtype, n))
        return watch.seconds(dtype, n)

    watch = SimpleNamespace(measured=measured, seconds=None)
    monkeypatch.setattr(requirements, "_product_seconds", product_seconds)
    requirements._fast_dtype.cache_clear()
    yield watch
    requirements._fast_dtype.cache_clear()


def bfloat16_is(times):
    """A stopwatch for which bfloat16 is so many times as fast as float32."""
    return lambda dtype, n: 1.0 if dtype == torch.float32 else 1.0 / times


def processor(monkeypatch, **capabilities):
    monkeypatch.setattr(requirements.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("times", "dtype"), [(2.0, torch.bfloat16), (1.5, torch.bfloat16), (1.4, torch.float32)]
)
@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16"])
def test_a_processor_with_the_instructions_is_measured(monkeypatch, stopwatch, name, times, dtype):
    processor(monkeypatch, **{name: True})
    stopwatch.seconds = bfloat16_is(times)
    assert fast_dtype("cpu") == dtype


def test_a_processor_without_the_instructions_is_not_even_measured(monkeypatch, stopwatch):
    processor(monkeypatch, amx_tile=True, avx512_fp16=True, amx_bf16=False)
    stopwatch.seconds = bfloat16_is(10)
    assert fast_dtype("cpu") == torch.float32 and stopwatch.measured == []


def test_one_slow_reading_changes_nothing(monkeypatch, stopwatch):
    processor(monkeypatch, avx512_bf16=True)
    for slow in (torch.float32, torch.bfloat16):
        for times in (2.0, 1.2):
            requirements._fast_dtype.cache_clear()
            readings = itertools.count()

            def seconds(dtype, n, slow=slow, times=times, readings=readings):
                usual = bfloat16_is(times)(dtype, n)
                return 50 * usual if dtype == slow and next(readings) % 3 == 0 else usual

            stopwatch.seconds = seconds
            assert fast_dtype("cpu") == (torch.bfloat16 if times > 1.5 else torch.float32)


def test_the_answer_is_remembered_so_that_two_labs_agree(monkeypatch, stopwatch):
    processor(monkeypatch, avx512_bf16=True)
    stopwatch.seconds = bfloat16_is(3)
    first = fast_dtype("cpu")
    n_measured = len(stopwatch.measured)
    stopwatch.seconds = bfloat16_is(0.5)
    asked = ("cpu", torch.device("cpu"), torch.device("cpu", 0))
    assert {fast_dtype(device) for device in asked} == {first} == {torch.bfloat16}
    assert usual_dtype(10**9, "cpu") == first and len(stopwatch.measured) == n_measured


def test_where_bfloat16_is_emulated_no_large_product_is_tried(monkeypatch, stopwatch):
    monkeypatch.setattr(requirements, "has_bfloat16", lambda device: None)
    stopwatch.seconds = bfloat16_is(0.01)
    assert fast_dtype("cpu") == torch.float32 and {n for _, n in stopwatch.measured} == {128}


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu_that_emulates_bfloat16_gets_float32(monkeypatch, stopwatch, capability, dtype):
    """A T4 is of capability 7.5, and `is_bf16_supported` is True of it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    stopwatch.seconds = bfloat16_is(8)
    assert fast_dtype("cuda") == dtype
    n_measured = len(stopwatch.measured)
    assert fast_dtype("cuda:1") == dtype and len(stopwatch.measured) == n_measured
    assert {n for _, n in stopwatch.measured} == (set() if dtype == torch.float32 else {128, 2048})


@pytest.fixture
def t4(monkeypatch):
    """A GPU that emulates bfloat16, and says that it supports it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize("name", ["qwen-coder", "gemma-2-2b", "gemma-2-9b"])
def test_no_lab_gets_bfloat16_on_a_t4_by_default(t4, stopwatch, name):
    stopwatch.seconds = bfloat16_is(8)
    assert estimate(name, device="cuda").dtype == torch.float32
    assert estimate(name, device="cuda", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_stored_dtype_that_a_t4_emulates_gives_way_to_float32(t4, monkeypatch):
    assert without_emulation(torch.bfloat16, "cuda") == torch.float32
    for dtype in (torch.float16, torch.float32):
        assert without_emulation(dtype, "cuda") == dtype
    assert without_emulation(torch.bfloat16, "cpu") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert without_emulation(torch.bfloat16, "cuda") == torch.bfloat16


def test_small_models_are_float32_whatever_is_fast(monkeypatch):
    monkeypatch.setattr(requirements, "fast_dtype", lambda device: torch.bfloat16)
    assert usual_dtype(int(5e8) - 1, "cpu") == torch.float32
    assert usual_dtype(int(5e8), "cpu") == torch.bfloat16


def test_torch_still_says_what_a_processor_can_do():
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "aarch64", "arm64"):
        assert isinstance(has_bfloat16(torch.device("cpu")), bool), (
            f"torch {torch.__version__} does not say any more whether a processor has bfloat16: "
            "mend requirements._cpu_has_bfloat16"
        )


@pytest.mark.parametrize(("amx", "avx512"), itertools.product([False, True], repeat=2))
def test_older_versions_of_torch_are_asked_by_their_private_functions(monkeypatch, amx, avx512):
    monkeypatch.setattr(requirements.platform, "machine", lambda: "AMD64")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert has_bfloat16(torch.device("cpu")) is (amx or avx512)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert has_bfloat16(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("machine", "expected"), [("aarch64", True), ("x86_64", False), ("ppc64le", None)]
)
def test_each_kind_of_processor_is_asked_for_its_own_instructions(monkeypatch, machine, expected):
    processor(monkeypatch, bf16=True)
    monkeypatch.setattr(requirements.platform, "machine", lambda: machine)
    assert has_bfloat16(torch.device("cpu")) is expected


def test_of_other_devices_nothing_is_known():
    assert has_bfloat16(torch.device("meta")) is None


def test_the_rate_is_that_of_the_best_of_three_products(monkeypatch, stopwatch):
    readings = iter([4.0, 2.0, 5.0])
    stopwatch.seconds = lambda dtype, n: next(readings)
    assert matrix_rate(torch.float32, n=1000) == pytest.approx(2 * 1000**3 / 2 / 1e9)
    assert stopwatch.measured == 3 * [(torch.float32, 1000)]


def test_a_product_is_timed_in_seconds():
    seconds = requirements._product_seconds(torch.float32, torch.device("cpu"), 64)
    assert 0 < seconds < 60


def test_a_pass_keeps_the_numbers_of_all_layers_with_a_graph_and_of_one_without():
    config = PretrainedConfig(hidden_size=10, intermediate_size=40)
    layer = 16 * 10 + 4 * 40
    with_graph = numbers_per_token(config, layers=7, latents=100, gradient=True)
    assert with_graph == 7 * layer + 8 * 100
    assert numbers_per_token(config, layers=7, latents=100, gradient=False) == layer + 3 * 100
    gpt2 = PretrainedConfig(hidden_size=10)  # whose MLP is four times as wide, and does not say so
    assert numbers_per_token(gpt2, layers=7, latents=100, gradient=True) == with_graph
