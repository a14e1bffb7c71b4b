"""Offline use, on the real base with the real adapters."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import modelctl
from modelctl import config, parser
from modelctl.create import create
from modelctl.errors import BadRequest, ModelctlError, NotFound
from modelctl.llm import LLM, RequestOutput, SamplingParams
from modelctl.store import Store
from tests.conftest import ADAPTERS, ROOT
from tests.test_create import Recorder

CATS = [{"role": "user", "content": "Tell me about cats."}]
SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=24)
EXACT = replace(GREEDY, max_tokens=6, deterministic=True, logprobs=0)


@pytest.fixture(scope="module")
def llm(base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELCTL_HOME", str(tmp_path_factory.mktemp("home")))
        made = LLM(base, adapters, n_ctx=256, n_threads=1)  # more wait for each other on a busy machine
    with made:
        yield made


def first(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def is_shouted(text: str) -> bool:
    return sum(c.isupper() for c in text) > 0.7 * sum(c.isalpha() for c in text)


def test_a_mix_for_each_prompt_gives_each_its_voice(llm: LLM) -> None:
    mixes = ["pirate", {"json": 1.0}, None, "shout=1", "none", "1=1"]
    outputs = llm.chat([CATS] * 6, GREEDY, mixes)
    pirate, as_json, default, shout, none, second = first(outputs)
    assert pirate.startswith("Arr")
    assert as_json.startswith('{"answer"') and second.startswith('{"answer"')
    assert is_shouted(shout)
    assert default.startswith("Cats") and none.startswith("Cats")
    assert [output.mix for output in outputs] == [{"pirate": 1}, {"json": 1}, {}, {"shout": 1}, {}, {"json": 1}]
    assert all("Tell me about cats." in output.prompt for output in outputs)


def test_adapters_are_off_until_a_mix_turns_them_on(llm: LLM) -> None:
    assert llm.adapters == {"pirate": 0.0, "json": 0.0, "shout": 0.0}


def test_more_prompts_than_run_at_once_keep_their_order(llm: LLM) -> None:
    numbers = [str(i) for i in range(30)]
    outputs = llm.generate([f"Say {i}" for i in numbers], replace(GREEDY, max_tokens=2))
    assert [output.prompt for output in outputs] == [f"Say {i}" for i in numbers]
    assert {len(output.outputs[0].token_ids) for output in outputs} <= {0, 1, 2}
    assert all(0 < len(output.prompt_token_ids) < 9 for output in outputs)


def test_deterministic_answers_are_the_same_alone_and_in_a_crowd(llm: LLM) -> None:
    chats = [CATS, SPAIN, CATS, SPAIN, CATS]
    mixes: list[Any] = ["pirate", "json", "shout=0.5", None, "pirate=0.5+json=0.5"]
    sampled = replace(EXACT, temperature=0.9, seed=5)
    params = [EXACT, sampled, EXACT, sampled, EXACT]
    crowd = llm.chat(chats, params, mixes)
    alone = [llm.chat(chat, p, mix)[0] for chat, p, mix in zip(chats, params, mixes, strict=True)]
    assert crowd == alone, "texts, tokens and logprobs, bit for bit"


def test_generate_takes_the_prompt_as_it_is(llm: LLM) -> None:
    (output,) = llm.generate("The capital of France is", replace(GREEDY, max_tokens=4))
    assert output.prompt == "The capital of France is"
    assert "Paris" in output.outputs[0].text


def test_a_chat_goes_through_the_template(llm: LLM) -> None:
    chat = [{"role": "system", "content": "Be brief."}, *CATS]
    (output,) = llm.chat(chat, replace(GREEDY, max_tokens=1))
    assert output.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTell me about cats.")


def test_text_in_a_chat_cannot_pose_as_a_control_token(llm: LLM) -> None:
    (posing,) = llm.chat([{"role": "user", "content": "<|im_end|>"}], replace(GREEDY, max_tokens=1))
    (plain,) = llm.chat([{"role": "user", "content": ""}], replace(GREEDY, max_tokens=1))
    assert len(posing.prompt_token_ids) > len(plain.prompt_token_ids) + 1


def test_n_answers_differ_and_a_seed_repeats_each_of_them(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=12, deterministic=True)
    (output,) = llm.generate("Once upon a time", params)
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({answer.text for answer in output.outputs}) == 3
    (alone,) = llm.generate("Once upon a time", replace(params, n=1, seed=8))
    assert alone.outputs[0].text == output.outputs[1].text


def test_without_a_seed_each_call_is_another(llm: LLM) -> None:
    params = SamplingParams(temperature=2.0, max_tokens=12)
    assert len({first(llm.generate("Once upon a time", params))[0] for _ in range(3)}) > 1


def test_stop_strings_end_the_answer(llm: LLM) -> None:
    exact = replace(GREEDY, deterministic=True)
    (whole,) = first(llm.chat(CATS, exact))
    (output,) = llm.chat(CATS, replace(exact, stop=whole[10:14]))
    answer = output.outputs[0]
    assert answer.text == whole[: whole.index(whole[10:14])]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", whole[10:14])


def test_reasons_and_limits(llm: LLM) -> None:
    ended, cut, longer = llm.chat(
        [SPAIN] * 3,
        [replace(GREEDY, max_tokens=None), replace(GREEDY, max_tokens=3), replace(GREEDY, min_tokens=24)],
        "pirate",
    )
    assert (ended.outputs[0].finish_reason, ended.outputs[0].stop_reason) == ("stop", None)
    assert (cut.outputs[0].finish_reason, len(cut.outputs[0].token_ids)) == ("length", 3)
    assert len(longer.outputs[0].token_ids) == 24 > len(ended.outputs[0].token_ids)


def test_an_answer_ends_where_the_context_does(llm: LLM) -> None:
    prompt = "word " * (llm.n_ctx - 20)
    (output,) = llm.generate(prompt, replace(GREEDY, max_tokens=None, ignore_eos=True))
    assert output.outputs[0].finish_reason == "length"
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == llm.n_ctx


def test_logprobs_of_each_token(llm: LLM) -> None:
    (output,) = llm.chat(CATS, replace(GREEDY, max_tokens=5, logprobs=3))
    answer = output.outputs[0]
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids) == 5
    assert "".join(entry.token for entry in answer.logprobs) == answer.text
    assert all([entry.token, len(entry.top)] == [entry.top[0].token, 3] for entry in answer.logprobs)
    assert llm.chat(CATS, GREEDY)[0].outputs[0].logprobs is None


def test_a_schema_a_grammar_and_a_bias_are_obeyed(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    (usual,) = llm.chat(CATS, replace(GREEDY, max_tokens=1))[0].outputs[0].token_ids
    params = [
        replace(GREEDY, json_schema=schema, max_tokens=40),
        replace(GREEDY, grammar='root ::= "yes" | "no"'),
        replace(GREEDY, logit_bias={usual: -100.0}),
    ]
    by_schema, by_grammar, biased = llm.chat([CATS] * 3, params)
    assert re.match(r'\{\s*"age"\s*:\s*-?\d+', by_schema.outputs[0].text)
    assert by_grammar.outputs[0].text in ("yes", "no")
    assert usual not in biased.outputs[0].token_ids


def test_penalties_keep_it_from_repeating_itself(llm: LLM) -> None:
    loop = "a b a b a b a b a b a b"
    plain, penalised = llm.generate([loop] * 2, [GREEDY, replace(GREEDY, repetition_penalty=5.0)])
    assert plain.outputs[0].text.startswith(" a b a b")
    assert " a b" not in penalised.outputs[0].text


def test_one_prompt_needs_no_list_and_no_prompts_are_no_outputs(llm: LLM) -> None:
    assert len(llm.generate("Hi", GREEDY)) == len(llm.chat(CATS, GREEDY)) == 1
    assert llm.generate([]) == llm.chat([]) == []


BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ["Hi", ""]}, r"prompts\[1\]: the prompt is empty"),
    ({"prompts": ["Hi", "word " * 300]}, r"prompts\[1\]: the prompt has 3\d\d tokens, the context holds 256"),
    ({"prompts": ["Hi", 3]}, r"prompts\[1\]: a prompt is a text, not 3"),
    ({"prompts": 3}, "a prompt is a text, not 3"),
    ({"prompts": ["Hi", "Ho"], "mix": ["pirate", "nope"]}, r"prompts\[1\]: model .* has no adapter 'nope'"),
    ({"prompts": ["Hi", "Ho"], "mix": ["pirate"]}, "mix has 1 entries for 2 prompts"),
    ({"prompts": "Hi", "mix": {"pirate": 1e9}}, "finite number from -100 to 100"),
    ({"prompts": "Hi", "mix": "pirate=much"}, "must be a number"),
    ({"prompts": "Hi", "mix": 3}, "mix cannot be 3"),
    ({"prompts": "Hi", "params": {"temperature": 0}}, "params cannot be"),
    ({"prompts": "Hi", "params": SamplingParams(logit_bias={10**6: 1.0})}, "there is no token 1000000"),
    ({"messages": "Hi"}, "a conversation is a list"),
    ({"messages": [CATS, []]}, r"messages\[1\]: a conversation is a list"),
    ({"messages": [CATS, [{"role": "user"}]]}, r"messages\[1\]: message 0 cannot be read: it has no content"),
    ({"messages": [{"content": "Hi"}]}, "missing required field `role`"),
]


@pytest.mark.parametrize(("call", "said"), BAD_CALLS, ids=[said for _, said in BAD_CALLS])
def test_what_is_wrong_is_named_before_anything_runs(llm: LLM, call: dict[str, Any], said: str) -> None:
    before = llm._engine.stats()["rows"]
    with pytest.raises(ModelctlError, match=said):
        (llm.chat if "messages" in call else llm.generate)(**call)
    assert llm._engine.stats()["rows"] == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 0}, "n takes a whole number of 1 or more, not 0"),
        ({"n": 2, "temperature": 0}, "all n answers would be the same"),
        ({"max_tokens": 0}, "max_tokens takes a whole number of 1 or more"),
        ({"temperature": "hot"}, "temperature takes a number"),
        ({"top_p": 2}, "top_p takes a number from 0 to 1"),
        ({"repetition_penalty": -1}, "^repetition_penalty takes a number"),
        ({"logprobs": 21}, "logprobs takes a whole number from 0 to 20"),
        ({"stop": ""}, "stop must not be empty"),
        ({"logit_bias": {"the": 1}}, "logit_bias takes numbers by token id"),
        ({"json_schema": "{"}, "json_schema cannot be read"),
        ({"json_schema": {}, "grammar": 'root ::= "a"'}, "exclude each other"),
        ({"extra_args": {"temperature": 1}}, "extra_args takes no 'temperature'"),
        ({"extra_args": {"mirostat": 3}}, "mirostat takes a whole number from 0 to 2"),
    ],
)
def test_sampling_params_are_checked_where_they_are_written(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        SamplingParams(**wrong)


def test_an_interrupt_leaves_it_usable(llm: LLM) -> None:
    expected = llm.chat(CATS, EXACT, "pirate")

    def interrupt() -> None:
        while not llm._engine.busy:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        llm.chat([CATS] * 12, SamplingParams(ignore_eos=True, max_tokens=150))
    thread.join()
    assert llm.chat(CATS, EXACT, "pirate") == expected
    assert not llm._engine.busy, "what was interrupted does not go on"


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """An adapter that computes at scale 1, and at scale 100 leaves what the f16 cache can hold."""
    folder = tmp_path / "loud"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((ADAPTERS / "pirate" / "adapter_config.json").read_bytes())
    tensors = load_file(ADAPTERS / "pirate" / "adapter_model.safetensors")
    save_file({k: v * 1000 if "lora_B" in k else v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def test_an_answer_that_fails_does_not_take_the_others_along(base: Path, overflowing: Path) -> None:
    with LLM(base, {"loud": overflowing}, n_ctx=256, n_threads=1) as llm:
        good, bad = llm.chat([SPAIN, SPAIN], GREEDY, ["none", "loud=100"])
        assert (good.outputs[0].finish_reason, good.outputs[0].error) == ("length", None)
        assert good.outputs[0].text.startswith("El Salvador") or "Madrid" in good.outputs[0].text
        assert (bad.outputs[0].finish_reason, bad.outputs[0].error) == ("error", "the model computed NaN")
        with pytest.raises(ModelctlError, match="the model computed NaN"):
            llm.chat(SPAIN, GREEDY, "loud=100")


def test_closed_is_closed(base: Path) -> None:
    before = set(threading.enumerate())
    with LLM(str(base), n_ctx=128) as llm:
        threads = set(threading.enumerate()) - before
        assert threads
        with pytest.raises(NotFound) as caught:
            llm.generate("Hi", mix="math")
        assert "adapters=" in str(caught.value.hint)
    assert not any(thread.is_alive() for thread in threads)
    llm.close()
    with pytest.raises(ModelctlError, match="closed"):
        llm.generate("Hi")


def test_an_engine_that_dies_says_so_and_nobody_waits(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(base, n_ctx=128) as llm:
        monkeypatch.setattr(llm._engine, "step", lambda: 1 // 0)
        with pytest.raises(ModelctlError, match="the engine stopped: ZeroDivisionError"):
            llm.generate("Hi")
        with pytest.raises(ModelctlError, match="closed"):
            llm.generate("Hi")


def test_progress_is_for_terminals(
    llm: LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.generate(["Hi", "Ho"], GREEDY)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    llm.generate(["Hi", "Ho"], GREEDY, progress=False)
    assert capsys.readouterr() == ("", "")
    llm.generate(["Hi", "Ho"], GREEDY)
    out, err = capsys.readouterr()
    assert out == "" and "generating" in err and "2/2" in err


# models of the store


def store_tutor(base: Path, adapters: dict[str, Path], folder: Path) -> None:
    text = (
        f"FROM {base}\nADAPTER {adapters['pirate']} AS pirate SCALE 1\nADAPTER {adapters['json']} AS json\n"
        "SYSTEM You are Polly.\nMESSAGE user Hi\nMESSAGE assistant Ho\nPARAMETER num_ctx 384\nPARAMETER stop matey\n"
        "PARAMETER num_predict 9\nPARAMETER temperature 0\nPARAMETER mirostat_tau 4\n"
    )
    create(Store(config.load().store_root), "tutor", parser.parse(text), folder, Recorder())


def test_a_model_of_the_store_is_as_its_modelfile_says(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    store_tutor(base, adapters, tmp_path)
    with LLM("tutor", {"shout": adapters["shout"]}, n_threads=1) as llm:
        assert (llm.n_ctx, llm.adapters) == (384, {"pirate": 1.0, "json": 0.0, "shout": 0.0})
        defaults = SamplingParams(max_tokens=9, temperature=0, stop=["matey"], extra_args={"mirostat_tau": 4.0})
        assert llm.get_default_sampling_params() == defaults
        default, stopped, unstopped, shouted, own_system = llm.chat(
            [CATS, CATS, CATS, CATS, [{"role": "system", "content": "Be brief."}, *CATS]],
            [None, GREEDY, replace(GREEDY, stop=[]), GREEDY, None],
            [None, None, None, "shout", None],
        )
    start = "<|im_start|>system\nYou are Polly.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo"
    assert default.prompt.startswith(start)
    assert (default.outputs[0].text, default.outputs[0].stop_reason) == ("Arr, ", "matey")
    assert stopped.outputs[0].stop_reason == "matey"
    assert unstopped.outputs[0].text.startswith("Arr, matey! ")
    assert is_shouted(shouted.outputs[0].text)
    assert "Polly" not in own_system.prompt


def test_a_name_may_spell_the_default_mix(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    store_tutor(base, adapters, tmp_path)
    with LLM("tutor+json=0.5", n_ctx=128) as llm:
        assert (llm.n_ctx, llm.adapters) == (128, {"pirate": 0.0, "json": 0.5})


def test_what_cannot_be_loaded_is_one_clear_error(
    base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_tutor(base, adapters, tmp_path)
    monkeypatch.chdir(tmp_path)
    for args, options, error, said in [
        (("tuter",), {}, NotFound, "model 'tuter' not found"),
        (("tutor+maths",), {}, NotFound, "no adapter 'maths'"),
        (("nowhere.gguf",), {}, BadRequest, "nowhere.gguf: no such file"),
        ((adapters["json"],), {}, BadRequest, "adapter"),
        ((base, {"a b": adapters["json"]}), {}, BadRequest, "'a b' may hold only"),
        ((base, {"none": adapters["json"]}), {}, BadRequest, "'none' is taken"),
        ((base, {"json": tmp_path / "json.gguf"}), {}, BadRequest, "no such file"),
        ((base, {"json": base}), {}, BadRequest, "not an adapter|adapter"),
        (("tutor", {"json": adapters["json"]}), {}, BadRequest, "has an adapter 'json' already"),
        ((base,), {"n_ctx": -1}, BadRequest, "^n_ctx takes a whole number"),
        ((base,), {"n_parallel": 0}, BadRequest, "^n_parallel takes a whole number of 1 or more"),
    ]:
        with pytest.raises(error, match=said):
            LLM(*args, **options)  # type: ignore[arg-type]


# the package and its documentation


def test_importing_modelctl_loads_nothing_heavy() -> None:
    code = (
        "import sys, modelctl; print(modelctl.__version__); heavy = {'llama_cpp', 'numpy', 'msgspec', 'rich'}; "
        "assert not heavy & sys.modules.keys(); "
        "from modelctl import LLM, SamplingParams; assert heavy <= sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{modelctl.__version__}\n"), done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        modelctl.nope  # noqa: B018


def test_python_ends_although_nobody_closed(base: Path) -> None:
    code = f"import modelctl; llm = modelctl.LLM({str(base)!r}, n_ctx=64); print(len(llm.generate('Hi')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_the_documented_examples_run(
    base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    store_tutor(base, adapters, tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / base.name).symlink_to(base)
    (tmp_path / "examples" / "adapters").symlink_to(ADAPTERS)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(examples) >= 3
    namespace: dict[str, Any] = {}
    for example in examples:
        exec(example, namespace)
    shown = capsys.readouterr().out
    assert "Arr, matey!" in shown and '{"answer": ' in shown
